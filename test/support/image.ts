/** Opens images in this process, as a mount does, but without mounting. */
import type { Test } from 'tap'
import { type CatalogEntry, catalogOf } from '../../src/image/catalog.js'
import { type Chain, closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import type { View } from '../../src/formats/driver.js'
import { readView } from '../../src/image/reading/engine.js'
import { nextData, nextHole } from '../../src/image/reading/holes.js'
import { type CacheSizes, ViewSet } from '../../src/image/reading/view-set.js'

export interface OpenImage {
  readonly chain: Chain
  readonly entries: readonly CatalogEntry[]
  readonly warnings: readonly string[]
  readonly views: ViewSet
  /** Returns the view of the file with this name, by default of the disk. */
  view(name?: string): View
  close(): void
}

const CACHES: CacheSizes = { metadataBytes: 4 * 2 ** 20, clusterBytes: 8 * 2 ** 20 }

export function openImage(
  path: string,
  options: OpenOptions & Partial<CacheSizes> = {},
): OpenImage {
  const chain = openChain(path, options)
  try {
    const { entries, warnings } = catalogOf(chain)
    const views = new ViewSet(chain.layers, { ...CACHES, ...options })
    const view = (name?: string) => {
      const entry = name === undefined ? entries[0] : entries.find(e => e.name === name)
      if (!entry) throw new Error(`no ${name} among ${entries.map(e => e.name).join(', ')}`)
      return views.viewOf(entry)
    }
    const close = () => closeChain(chain)
    return { chain, entries, warnings: [...chain.warnings, ...warnings], views, view, close }
  } catch (error) {
    closeChain(chain)
    throw error
  }
}

/** The same, closed when the test ends. */
export function openedImage(t: Test, path: string, options?: OpenOptions & Partial<CacheSizes>) {
  const image = openImage(path, options)
  t.teardown(() => image.close())
  return image
}

export function readAt(view: View, offset: number, length: number): Buffer {
  const target = Buffer.allocUnsafe(length)
  return readInto(view, target, offset)
}

/** Fills `target`, which no byte of before shows in. */
function readInto(view: View, target: Buffer, offset: number): Buffer {
  target.fill(0xee)
  readView(view, target, 0, target.length, offset)
  return target
}

export const readAll = (view: View): Buffer => readAt(view, 0, view.driver.sizeBytes)

/** Buffers for what is read again and again, and only looked at until the next time. */
export class ReusedBuffers {
  private readonly buffers: Buffer[] = []

  /** Returns all of `view`, in the buffer with this number. */
  readAll(view: View, number: number): Buffer {
    const { sizeBytes } = view.driver
    const known = this.buffers[number]
    const buffer = known && known.length >= sizeBytes ? known : Buffer.allocUnsafeSlow(sizeBytes)
    this.buffers[number] = buffer
    return readInto(view, buffer.subarray(0, sizeBytes), 0)
  }
}

/** Returns where two buffers first differ; -1 if they do not. */
export function firstDifference(a: Buffer, b: Buffer): number {
  if (a.equals(b)) return -1
  for (let i = 0; i < Math.max(a.length, b.length); i++) if (a[i] !== b[i]) return i
  return -1
}

/** Returns the runs of data, as a program finds them with SEEK_DATA and SEEK_HOLE. */
export function dataRuns(view: View): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = []
  const { sizeBytes } = view.driver
  for (let at = 0; at < sizeBytes; ) {
    const start = nextData(view, at)
    if (start < 0) break
    const end = nextHole(view, start)
    if (end <= start) throw new Error(`data at ${start} ends at ${end}`)
    runs.push({ start, end })
    at = end
  }
  return runs
}
