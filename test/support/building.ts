/** Fills new images in all ways that a builder has, beside a model of the disk. */
import zlib from 'node:zlib'
import type { ImageBuilder, Packing, TargetFiles } from '../../src/formats/creating.js'
import { beginImage, type NewImageRequest, targetOf } from '../../src/image/making/new-image.js'
import { NewFiles } from '../../src/image/making/new-files.js'
import { Random } from '../soundness/steps.js'

/** Makes an image at `file` whose disk becomes `disk`, which has the backing file's bytes before. */
export async function buildRandomly(
  file: string,
  request: Omit<NewImageRequest, 'sizeBytes'>,
  disk: Buffer,
  seed: number,
): Promise<void> {
  const files = new NewFiles(file)
  try {
    await fill(targetOf(files), { ...request, sizeBytes: disk.length }, disk, seed)
    files.commit()
  } catch (error) {
    files.discard()
    throw error
  }
}

/** The same in stores. */
export async function fill(
  files: TargetFiles,
  request: NewImageRequest,
  disk: Buffer,
  seed: number,
): Promise<void> {
  const random = new Random(seed)
  const builder = await beginImage(files, request)
  const { unitBytes } = builder
  for (let offset = 0; offset < disk.length; ) {
    const units = random.pick([1, 1, 2, 3, 7, Math.ceil((300 * 1024) / unitBytes)])
    const end = Math.min(disk.length, offset + (1 + random.below(units)) * unitBytes)
    step(builder, disk, offset, end, random)
    offset = end
  }
  builder.finish()
}

function step(
  builder: ImageBuilder,
  disk: Buffer,
  offset: number,
  end: number,
  random: Random,
): void {
  const { packing, isPackedOnly, unitBytes } = builder
  const length = end - offset
  const kind = random.pick(['skip', 'place', 'place', 'pack', 'zero'])
  if (kind === 'zero') {
    builder.zero(offset, length)
    disk.fill(0, offset, end)
    return
  }
  if (kind === 'skip' || (isPackedOnly && kind === 'place')) return
  const content = contentOf(length, random)
  if (kind === 'place' || !packing) {
    place(builder, offset, content)
    content.copy(disk, offset)
    return
  }
  for (let at = 0; at < length; at += unitBytes) {
    const unit = Buffer.concat([content.subarray(at, at + unitBytes)], unitBytes)
    const packed = pack(unit, packing)
    if (packed.length <= packing.maxBytes) builder.pack(offset + at, packed)
    else place(builder, offset + at, content.subarray(at, at + unitBytes))
    unit.copy(disk, offset + at, 0, Math.min(unitBytes, length - at))
  }
}

function place(builder: ImageBuilder, offset: number, content: Buffer): void {
  let done = 0
  for (const { store, at, length } of builder.place(offset, content.length)) {
    store.write(content, done, length, at)
    done += length
  }
  if (done !== content.length) throw new Error(`${done} of ${content.length} bytes have a place`)
}

/** Returns bytes of one value for zstd, and otherwise also some that do not compress. */
function contentOf(length: number, random: Random): Buffer {
  const content = Buffer.alloc(length, 1 + random.below(255))
  if (random.chance(0.3)) for (let i = 0; i < length; i++) content[i] = random.below(256)
  return content
}

function pack(unit: Buffer, { type }: Packing): Buffer {
  if (type === 'deflate') return zlib.deflateRawSync(unit, { windowBits: 12 })
  return type === 'zlib' ? zlib.deflateSync(unit) : zstdOf(unit)
}

/** Returns a zstd frame of blocks that repeat one byte (RFC 8878), or, if the unit has several, too many bytes. */
function zstdOf(unit: Buffer): Buffer {
  const [first = 0] = unit
  if (!unit.equals(Buffer.alloc(unit.length, first))) return Buffer.alloc(unit.length)
  const head = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0])
  head.writeUInt32LE(unit.length, 5)
  const blocks: Buffer[] = []
  for (let left = unit.length; left > 0; ) {
    const bytes = Math.min(left, 128 * 1024)
    left -= bytes
    const block = Buffer.alloc(4)
    block.writeUIntLE((left === 0 ? 1 : 0) + 2 + bytes * 8, 0, 3)
    block[3] = first
    blocks.push(block)
  }
  return Buffer.concat([head, ...blocks])
}
