/**
 * Keeps the cache within its size, and the last tenth of its file system free. The blocks whose last use is the longest ago
 * go first, of all objects.
 */
import fs from 'node:fs'
import { BlockFile, ENTRY_BYTES } from './block-file.js'
import type { CacheFolder, ListedObject } from './folder.js'

/** How much may be written between two looks. */
const STEP_BYTES = 16 * 2 ** 20
/** After giving up blocks, so much of the limit is free, so that this is not done for each block. */
const SLACK = 1 / 16
const READ_BYTES = 2 ** 20

export class CacheSpace {
  private left = 0

  constructor(
    private readonly folder: CacheFolder,
    private readonly limitBytes: number,
  ) {}

  /** Reports whether `bytes` may be written. Gives up other blocks for them if need be. */
  takes(bytes: number): boolean {
    if (this.left < bytes) this.left = this.roomFor(Math.max(bytes, STEP_BYTES))
    if (this.left < bytes) return false
    this.left -= bytes
    return true
  }

  /** Returns how many bytes may be written until the next look, at most `wanted`. */
  private roomFor(wanted: number): number {
    const objects = this.folder.list()
    const used = objects.reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0)
    const room = this.mayGrowBy(used)
    if (room >= wanted) return wanted
    const missing = wanted - room
    const freed = giveUp(objects, missing + Math.min(used, this.limitBytes) * SLACK)
    return Math.max(0, Math.min(wanted, room + freed))
  }

  private mayGrowBy(used: number): number {
    const { bavail, blocks, bsize } = fs.statfsSync(this.folder.path)
    const free = (bavail - blocks / 10) * bsize
    return Math.floor(Math.min(this.limitBytes - used, free))
  }
}

/** Gives up about `wanted` bytes of blocks, the longest unused first. Returns how many. */
function giveUp(objects: readonly ListedObject[], wanted: number): number {
  const byTime = new Map<number, number>()
  for (const object of objects) {
    for (const { time } of entriesOf(object)) {
      byTime.set(time, (byTime.get(time) ?? 0) + object.about.blockBytes)
    }
  }
  let last = 0
  let sum = 0
  for (const [time, bytes] of [...byTime].sort(([a], [b]) => a - b)) {
    last = time
    sum += bytes
    if (sum >= wanted) break
  }
  let freed = 0
  for (const object of objects) freed += dropUntil(object, last, wanted - freed)
  return freed
}

/** Drops blocks that were last used at `time` or before, until `wanted` bytes are free. Returns how many are. */
function dropUntil(object: ListedObject, time: number, wanted: number): number {
  const { blockBytes, sizeBytes } = object.about
  const files = openObject(object)
  if (!files) return 0
  const file = new BlockFile(files, blockBytes, sizeBytes)
  let freed = 0
  let first = -1
  let count = 0
  const drop = () => {
    if (count > 0 && file.drop(first, count)) freed += count * blockBytes
    count = 0
  }
  try {
    for (const entry of entriesOf(object)) {
      if (freed + count * blockBytes >= wanted) break
      if (entry.time > time) continue
      if (count === 0 || entry.block !== first + count) {
        drop()
        first = entry.block
      }
      count++
    }
    drop()
  } finally {
    fs.closeSync(files.data)
    fs.closeSync(files.index)
  }
  return freed
}

function openObject({ folder }: ListedObject) {
  try {
    const data = fs.openSync(`${folder}/data`, 'r+')
    return { data, index: fs.openSync(`${folder}/index`, 'r+') }
  } catch {
    return undefined
  }
}

/** Yields the blocks of an object with the time of their last use. */
function* entriesOf({ folder }: ListedObject): Generator<{ block: number; time: number }> {
  let fd: number
  try {
    fd = fs.openSync(`${folder}/index`, 'r')
  } catch {
    return
  }
  try {
    const bytes = Buffer.alloc(READ_BYTES)
    for (let at = 0; ; ) {
      const got = fs.readSync(fd, bytes, 0, READ_BYTES, at)
      for (let i = 0; i + ENTRY_BYTES <= got; i += ENTRY_BYTES) {
        const time = bytes.readUInt32LE(i + 4)
        if (time !== 0) yield { block: (at + i) / ENTRY_BYTES, time }
      }
      if (got < READ_BYTES) return
      at += got
    }
  } finally {
    fs.closeSync(fd)
  }
}
