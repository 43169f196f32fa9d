/** How sources are reached: what the options of a command say, for all images of this process. */
import os from 'node:os'
import path from 'node:path'

export interface Settings {
  /** The folder of the cache; undefined keeps blocks in memory only. */
  readonly cacheFolder: string | undefined
  readonly cacheBytes: number
  /** How long a request may be tried again, in milliseconds. */
  readonly timeoutMs: number
  /** The file of the certificates that are trusted; undefined for those of the system. */
  readonly certificates: string | undefined
  /** Whether only the cache is asked. */
  readonly isOffline: boolean
  /** Whether all that is missing is fetched in the background. */
  readonly isPrefetching: boolean
}

export const defaultCacheFolder = (): string =>
  path.join(process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache'), 'vimgfs')

export const DEFAULT_CACHE_BYTES = 10 * 2 ** 30
export const DEFAULT_TIMEOUT_MS = 60_000

let settings: Settings | undefined

/** Sets what holds for all sources that are opened from now on. */
export function configureSources(changes: Partial<Settings>): void {
  settings = { ...currentSettings(), ...changes }
}

export const currentSettings = (): Settings =>
  (settings ??= {
    cacheFolder: defaultCacheFolder(),
    cacheBytes: DEFAULT_CACHE_BYTES,
    timeoutMs: DEFAULT_TIMEOUT_MS,
    certificates: undefined,
    isOffline: false,
    isPrefetching: false,
  })
