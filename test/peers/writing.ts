/** Writing images in this process, beside a plain file that gets the same. */
import { open } from 'node:fs/promises'
import { closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import { unlockChain } from '../../src/image/opening/encryption.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { storeOf } from '../../src/image/layer.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { Random } from '../soundness/steps.js'
import { bracketed } from '../support/writable.js'

const K = 1024
const CACHES = { metadataBytes: K * K, clusterBytes: K * K }

export interface OpenedForWriting {
  readonly disk: WritableDisk
  read(offset: number, length: number): Buffer
  /** Returns warnings. */
  close(): readonly string[]
}

/** @param passphrases of its encrypted layers, in the order in which they are asked for */
export async function openForWriting(
  image: string,
  passphrases: readonly string[] = [],
  options: OpenOptions = {},
): Promise<OpenedForWriting> {
  const locked = openChain(image, { access: 'write', takesLocks: true, ...options })
  let asked = 0
  const chain = await unlockChain(locked, async () => [Buffer.from(passphrases[asked++] ?? '')])
  const [top] = chain.layers
  const memory = createDiskMemory(top, 1, storeOf(top))
  const views = new ViewSet(chain.layers, CACHES, undefined, { memory, thread: 0 })
  const disk = views.disk as WritableDisk
  const entry = { name: '', kind: 'disk' as const, layer: 0, startOffset: 0, sizeBytes: 0 }
  const view = views.viewOf({ ...entry, modified: top.modified, attributes: {} })
  const close = () => {
    const warnings = disk.close()
    closeChain(chain)
    return warnings
  }
  return { disk, read: bracketed(disk, view), close }
}

/**
 * Writes and zeroes here and there, the same in `model`; reads each piece back, and closes the image.
 * Throws where something else is read.
 */
export async function writeBoth(
  { disk, read, close }: OpenedForWriting,
  model: string,
  seed: number,
): Promise<void> {
  const { sizeBytes } = disk
  const plain = await open(model, 'r+')
  const random = new Random(seed)
  const zeros = Buffer.alloc(300 * K)
  let expected = Buffer.alloc(0)
  try {
    for (let i = 0; i < 60; i++) {
      const unit = random.pick([1, 512, 4 * K, 64 * K])
      const offset = Math.floor(random.below(sizeBytes) / unit) * unit
      const longest = random.pick([unit, 5 * K, 192 * K, 300 * K])
      const most = Math.min(1 + random.below(longest), sizeBytes - offset)
      const length = Math.max(1, most - (most % unit))
      if (random.chance(0.3)) {
        disk.zero(offset, length)
        expected = zeros.subarray(0, length)
      } else {
        expected = Buffer.alloc(length, 1 + random.below(255))
        disk.write(expected, 0, length, offset)
      }
      await plain.write(expected, 0, length, offset)
      if (random.chance(0.1)) disk.flush()
      if (!read(offset, length).equals(expected)) throw new Error(`${seed}: read back at ${offset}`)
    }
  } finally {
    await plain.close()
    close()
  }
}
