/** Where the blocks of one object are kept: in the cache on disk, and in memory where that is full or not wanted. */
import { SystemError } from '../../errors.js'
import { closeFile, ftruncate, memoryFile } from '../../io/libc.js'
import { BlockFile, type BlockFiles, ENTRY_BYTES } from '../cache/block-file.js'
import { closeFiles } from '../cache/folder.js'
import type { CacheSpace } from '../cache/space.js'

/** How much of one object is kept in memory. */
const MEMORY_BYTES = 64 * 2 ** 20

export class Tiers {
  readonly files: readonly BlockFiles[]
  private readonly disk: BlockFile | undefined
  private readonly memory: BlockFile
  /** The blocks in memory, the oldest first. */
  private readonly held = new Set<number>()

  /** @param disk the files in the cache; undefined without it */
  constructor(
    disk: BlockFiles | undefined,
    private readonly space: CacheSpace | undefined,
    private readonly blockBytes: number,
    sizeBytes: number,
  ) {
    const memory = memoryFiles(blockBytes, sizeBytes)
    this.memory = new BlockFile(memory, blockBytes, sizeBytes)
    this.disk = disk && new BlockFile(disk, blockBytes, sizeBytes)
    this.files = disk ? [disk, memory] : [memory]
  }

  has(block: number): boolean {
    return this.disk?.has(block) === true || this.memory.has(block)
  }

  /** Reports whether a block is there with the right bytes. @param target room for a block */
  isSound(block: number, target: Buffer): boolean {
    return this.disk?.read(block, target) === true || this.memory.read(block, target)
  }

  /** Whether blocks stay when they are fetched before anybody asks for them. */
  get keepsAll(): boolean {
    return this.disk !== undefined
  }

  put(block: number, bytes: Buffer): void {
    if (this.disk && this.space?.takes(this.blockBytes)) {
      try {
        this.disk.put(block, bytes)
        return
      } catch (error) {
        // The file system is full, or fails.
        if (!(error instanceof SystemError)) throw error
      }
    }
    this.held.delete(block)
    this.held.add(block)
    this.memory.put(block, bytes)
    for (const old of this.held) {
      if (this.held.size * this.blockBytes <= MEMORY_BYTES || old === block) break
      this.held.delete(old)
      this.memory.drop(old, 1)
    }
  }

  close(): void {
    const [disk] = this.disk ? this.files : []
    if (disk) closeFiles(disk)
    for (const fd of Object.values(this.memory.files)) closeFile(fd)
  }
}

function memoryFiles(blockBytes: number, sizeBytes: number): BlockFiles {
  const [data, index] = [memoryFile('vimgfs-blocks'), memoryFile('vimgfs-index')]
  ftruncate(data, sizeBytes)
  ftruncate(index, Math.ceil(sizeBytes / blockBytes) * ENTRY_BYTES)
  return { data, index }
}
