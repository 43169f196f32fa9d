/** The options of commands that may read an image that is not on this machine. */
import path from 'node:path'
import { UsageError } from '../errors.js'
import { configureSources, currentSettings } from '../sources/settings.js'
import { parseCount, parseSize } from './arguments.js'

export interface RemoteValues {
  readonly 'cache-dir'?: string | undefined
  readonly 'cache-size'?: string | undefined
  readonly 'no-cache'?: boolean | undefined
  readonly cacert?: string | undefined
  readonly timeout?: string | undefined
  readonly offline?: boolean | undefined
  readonly prefetch?: boolean | undefined
}

const MAX_TIMEOUT_SECONDS = 86_400

/** Makes the options hold for all images that are opened from now on. Throws UsageError. */
export function configureRemote(values: RemoteValues): void {
  const { 'cache-dir': folder, 'cache-size': size, 'no-cache': isUncached = false } = values
  const { offline = false, prefetch = false, cacert, timeout } = values
  if (isUncached && (folder !== undefined || size !== undefined)) {
    throw new UsageError('--no-cache excludes --cache-dir and --cache-size')
  }
  if (isUncached && offline)
    throw new UsageError('--offline reads from the cache; leave out --no-cache')
  if (isUncached && prefetch)
    throw new UsageError('--prefetch fills the cache; leave out --no-cache')
  if (offline && prefetch) throw new UsageError('--prefetch and --offline exclude each other')
  const { cacheFolder, cacheBytes, timeoutMs } = currentSettings()
  configureSources({
    cacheFolder: isUncached ? undefined : folder === undefined ? cacheFolder : path.resolve(folder),
    cacheBytes: size === undefined ? cacheBytes : parseSize(size, '--cache-size'),
    timeoutMs:
      timeout === undefined
        ? timeoutMs
        : 1000 * parseCount(timeout, '--timeout', 1, MAX_TIMEOUT_SECONDS),
    certificates: cacert === undefined ? undefined : path.resolve(cacert),
    isOffline: offline,
    isPrefetching: prefetch,
  })
}
