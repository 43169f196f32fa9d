/** Images whose headers claim more than there can be: reading them takes little memory and time. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { checkImage } from '../../src/cli/check-image.js'
import { ImageError, SystemError } from '../../src/errors.js'
import { catalogOf } from '../../src/image/catalog.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { describe } from '../../src/image/info.js'
import { storeOf } from '../../src/image/layer.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { noise } from '../fixtures/model.js'
import { cpuMs } from '../support/cpu.js'
import { problemOf } from '../support/exercise.js'
import { readAt } from '../support/image.js'
import { tempFolder } from '../support/run.js'
import { collectShared } from '../support/writable.js'

const K = 1024
const MAX_GROWTH_BYTES = 200 * K * K
const MAX_MS = 20_000
const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }

export interface ClaimingFile {
  readonly bytes: Buffer
  /** How long the sparse file is. */
  readonly sizeBytes: number
  /** Bytes at the file's end. */
  readonly tail?: Buffer
}

/** The image's file is the first one. */
export type ClaimingImage = Readonly<Record<string, ClaimingFile>>

/** Mounts, describes, checks, writes and repairs the image, each within bounds of processor time and memory. */
export async function usesLittle(t: Test, image: ClaimingImage): Promise<void> {
  const folder = tempFolder(t)
  for (const [name, file] of Object.entries(image)) put(join(folder, name), file)
  const path = join(folder, Object.keys(image)[0] as string)
  const check = (repair?: 'leaks' | 'all') =>
    checkImage(path, { format: undefined, repair, allowPaths: [] }, {})
  const steps: Record<string, () => unknown> = {
    'a mount that reads': () => use(path, 'read'),
    info: () => describe(path, {}, true),
    check: () => check(),
    'a first write': () => use(path, 'write'),
    'repair leaks': () => check('leaks'),
    'repair all': () => check('all'),
  }
  for (const [what, act] of Object.entries(steps)) {
    const before = process.resourceUsage().maxRSS * K
    const started = cpuMs()
    await attempt(act)
    const milliseconds = cpuMs() - started
    const grown = process.resourceUsage().maxRSS * K - before
    t.ok(milliseconds < MAX_MS, `${what}: ${Math.round(milliseconds)} ms`)
    t.ok(grown < MAX_GROWTH_BYTES, `${what}: ${Math.round(grown / K / K)} MiB more`)
  }
}

/** Throws every error again that does not refuse the image in one line. */
async function attempt(act: () => unknown): Promise<void> {
  try {
    await act()
  } catch (error) {
    const isRefusal = error instanceof ImageError || error instanceof SystemError
    if (!isRefusal || problemOf(error) !== undefined) throw error
  }
}

async function use(path: string, access: 'read' | 'write'): Promise<void> {
  collectShared()
  const chain = openChain(path, { access })
  try {
    const [top] = chain.layers
    const writing =
      access === 'write' ? { memory: createDiskMemory(top, 1, storeOf(top)), thread: 0 } : undefined
    const views = new ViewSet(chain.layers, CACHES, undefined, writing)
    const view = views.viewOf(catalogOf(chain).entries[0] as never)
    await attempt(() => readAt(view, 0, Math.min(8192, view.driver.sizeBytes)))
    if (access === 'read') return
    const disk = views.disk as WritableDisk
    await attempt(() => disk.write(noise(100, 9), 0, 100, Math.min(8192, disk.sizeBytes - 100)))
    await attempt(() => disk.flush())
    await attempt(() => disk.close())
  } finally {
    closeChain(chain)
  }
}

function put(path: string, { bytes, sizeBytes, tail }: ClaimingFile): void {
  const fd = openSync(path, 'w')
  writeSync(fd, bytes, 0, bytes.length, 0)
  ftruncateSync(fd, sizeBytes)
  if (tail) writeSync(fd, tail, 0, tail.length, sizeBytes - tail.length)
  closeSync(fd)
}
