/** Checking of formats whose images lie in one file, which the checker opens by itself, damaged or not. */
import type { WritableStore } from '../../io/store.js'
import type { FormatChecking } from '../format.js'
import type { CheckOptions, CheckResult, RepairKind, RepairResult } from './report.js'

interface FileOptions extends CheckOptions {
  readonly isDevice: boolean
}

interface FileChecker {
  check(store: WritableStore, options: FileOptions): CheckResult
  repair(store: WritableStore, what: RepairKind, options: FileOptions): RepairResult
}

/** @param load loads the code that checks and repairs */
export const oneFileChecking = (load: () => Promise<FileChecker>): FormatChecking => ({
  needsLayer: false,
  load: async () => {
    const { check, repair } = await load()
    return {
      check: ({ store, isDevice }, options) => check(store, { ...options, isDevice }),
      repair: ({ store, isDevice }, what, options) => repair(store, what, { ...options, isDevice }),
    }
  },
})
