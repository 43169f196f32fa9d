/** Diagnostics of a mount: the texts of `.vimgfs`, and the log lines about faults. */
import { type ErrorContext, ImageError, isExpected } from '../../errors.js'
import type { ChangeWatch } from '../../image/opening/change-watch.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import type { LayerSpec } from '../../formats/format.js'
import { filesOf, removedFiles } from '../../image/layer.js'
import { remoteStats } from '../../sources/registry.js'
import { jsonWithoutHidden } from '../../hidden-characters.js'
import { opcodeName } from '../protocol/opcodes.js'
import { readStats } from './stats.js'
import type { WrittenFiles } from '../writing/written-files.js'

export interface LogEntry {
  readonly level: 'debug' | 'warn' | 'error'
  readonly message: string
  readonly detail?: Readonly<Record<string, unknown>>
}

/** How many places of damage are remembered, so that each is logged once: a scan may meet a lost table a million times. */
const MAX_LOGGED_FAULTS = 1000

/** Returns a function that logs damage in an image with one line for each place, and a bug with its stack every time. */
export function faultLogger(log: (entry: LogEntry) => void) {
  const logged = new Set<string>()
  return (error: unknown, opcode: number): void => {
    if (!isExpected(error)) {
      const stack = error instanceof Error ? error.stack : String(error)
      log({ level: 'error', message: `${opcodeName(opcode)} failed`, detail: { stack } })
      return
    }
    const context: ErrorContext = error instanceof ImageError ? error.context : {}
    const key = `${context.path} ${error.message}`
    if (context.isRepeated || logged.has(key)) return
    logged.add(key)
    if (logged.size > MAX_LOGGED_FAULTS) return
    const last = logged.size === MAX_LOGGED_FAULTS ? '; no more such lines from this thread' : ''
    log({
      level: 'error',
      message: `${opcodeName(opcode)}: ${error.message}${last}`,
      detail: { file: context.path, guestOffset: context.offset },
    })
  }
}

export const stallMessage = (seconds: number): string =>
  `the storage of the image has not answered for ${seconds} s; requests wait for it`

/**
 * @param status the fields that do not change
 * @param files the files that programs can write; undefined for the one of `views.disk`
 */
export function statusText(
  status: Readonly<Record<string, unknown>>,
  snapshots: number,
  { disk }: ViewSet,
  layers: readonly LayerSpec[],
  watch: ChangeWatch | undefined,
  files?: WrittenFiles,
): string {
  const disks = files ? [...files.found].map(file => file.disk) : disk ? [disk] : []
  for (const each of disks) each.checkFiles()
  const failure = disks.find(each => each.failure !== '')?.failure ?? null
  const readOnly = (!files && !disk) || failure !== null
  const removed = removedFiles(layers[0] as LayerSpec).length > 0
  const changed = watch?.isChanged === true
  const now = layers.map(describeLayer)
  const text = { ...status, layers: now, snapshots, readOnly, failure, removed, changed }
  return `${jsonWithoutHidden(JSON.stringify(text, null, 2))}\n`
}

/** Returns what status.json says of a layer. */
const describeLayer = (layer: LayerSpec): Record<string, unknown> => ({
  path: layer.path,
  format: layer.format,
  ...(layer.encryption && { encryption: layer.encryption.method }),
  ...(layer.dataFile && { dataFile: layer.dataFile.path }),
  ...(layer.extentFiles && { extents: layer.extentFiles.map(({ path }) => path) }),
})

/**
 * @param started the start of the server, in milliseconds since 1970
 * @param threads how many serve now
 * @param layers those whose files are read
 */
export function statsText(
  shared: SharedArrayBuffer,
  started: number,
  threads: number,
  layers: readonly LayerSpec[],
): string {
  const { rss, heapUsed } = process.memoryUsage()
  const uptimeSeconds = Math.round((Date.now() - started) / 1000)
  const stats = readStats(shared, opcodeName)
  const remote = remoteStats(layers.flatMap(layer => filesOf(layer)))
  const text = {
    uptimeSeconds,
    threads,
    ...stats,
    ...(remote && { remote }),
    memory: { rssBytes: rss, threadHeapBytes: heapUsed },
  }
  return `${JSON.stringify(text, null, 2)}\n`
}
