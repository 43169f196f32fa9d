/** Has an image that is open checked, or repaired, by its format. */
import fs from 'node:fs'
import type {
  CheckOptions,
  CheckResult,
  RepairKind,
  RepairResult,
} from '../../formats/check/report.js'
import type {
  CheckedImage,
  FormatChecker,
  FormatChecking,
  LayerSpec,
} from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { WritableStore } from '../../io/store.js'
import { OPENED_FILES } from '../opening/store-source.js'

/** The result of a check, or of a repair with the check after it. */
export type Found = Pick<RepairResult, 'after'> &
  Partial<RepairResult> & {
    /** Whether it was stopped, and `after` is what it had found. */
    readonly isStopped?: boolean
  }

class Stopped extends Error {
  override name = 'Stopped'
}

/** The image and the work on it, as plain data. */
export interface CheckSetup {
  /** Its files are open. */
  readonly layer: LayerSpec
  /** The kind of repair; undefined for a check. */
  readonly repair: RepairKind | undefined
  /** Why the image may not be written. */
  readonly obstacle: string | undefined
  /** Four bytes, which another thread may make 1 to stop a check. A repair never stops. */
  readonly stop?: SharedArrayBuffer | undefined
}

/** Checks or repairs the image in this thread. Throws ImageError, SystemError. */
export async function runCheck(setup: CheckSetup, options: CheckOptions): Promise<Found> {
  const { layer, repair } = setup
  const checking = formatOf(layer).checking as FormatChecking
  const checker = await checking.load()
  const image = checkedImage(setup, checking)
  return repair === undefined
    ? checkUntilStopped(checker, image, setup, options)
    : checker.repair(image, repair, options)
}

function checkUntilStopped(
  checker: FormatChecker,
  image: CheckedImage,
  { stop }: CheckSetup,
  { progress }: CheckOptions,
): Found {
  const word = stop && new Int32Array(stop)
  let found: CheckResult | undefined
  const stopping = (part: number) => {
    if (word && Atomics.load(word, 0) !== 0) throw new Stopped()
    progress?.(part)
  }
  const began = (report: CheckResult) => {
    found = report
  }
  try {
    return { after: checker.check(image, { progress: stopping, began }) }
  } catch (error) {
    if (!(error instanceof Stopped) || !found) throw error
    return { after: { ...found, checkErrors: found.checkErrors + 1 }, isStopped: true }
  }
}

function checkedImage({ layer, obstacle }: CheckSetup, checking: FormatChecking): CheckedImage {
  const stores = new Map<number, WritableStore>()
  // Extents in one file share a store.
  const storeOf = (file: FileSpec): WritableStore => {
    const size = BigInt64Array.of(BigInt(file.sizeBytes))
    const store = stores.get(file.fd) ?? OPENED_FILES.writable(file, size)
    stores.set(file.fd, store)
    return store
  }
  const isDeviceFile = ({ fd, source }: FileSpec) =>
    source !== undefined || fs.fstatSync(fd).isBlockDevice()
  return {
    store: storeOf(layer),
    layer: checking.needsLayer ? layer : undefined,
    storeOf,
    isDevice: isDeviceFile(layer),
    isDeviceFile,
    obstacle,
  }
}
