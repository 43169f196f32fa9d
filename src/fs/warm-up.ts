/**
 * Makes V8 compile the code that serves requests before there are any.
 *
 * Compiling takes 200 ms of a processor for each worker, and requests that come meanwhile wait for milliseconds: a program
 * that wrote for a second lost a quarter of it. So workers that have nothing to do yet answer requests of their own, on
 * scratch disks in memory that are made like the mounted one.
 *
 *  (1) Compiled code holds only for the shapes of objects and the sizes of numbers that it has seen. So there are two disks,
 *      below and above what fits 32 bits, used by turns. They are made before the real one, from parts that were cloned as
 *      those of the real one are.
 *  (2) The warm-up touches nothing of the mount. An error ends it and leaves only a line in the log.
 */
import type { CatalogEntry } from '../image/catalog.js'
import type { FormatWriting, LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import { createDiskMemory, type DiskMemory } from '../image/disk-memory.js'
import { type CacheSizes, ViewSet } from '../image/view-set.js'
import { closeFile, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, memoryFile } from '../io/libc.js'
import { WritableFileStore } from '../io/store.js'
import { TextSlots } from './control.js'
import { ImageFs } from './image-fs.js'
import { Responder } from './opcodes.js'
import {
  FALLOCATE_IN,
  FLUSH_IN,
  IN_HEADER,
  OPCODE,
  OUT_HEADER,
  READ_IN,
  RELEASE_IN,
  WRITE_IN,
} from './protocol.js'
import { type Appearance, Tree } from './tree.js'
import { SECTOR_BYTES } from '../sector.js'

const SIZES_BYTES = [2 ** 30, 33 * 2 ** 30]
/** The size of the larger requests: a few clusters. */
const REQUEST_BYTES = 32 * 1024
const SMALL_BYTES = 4096
/** A cluster of blank disks. */
const ZEROS_BYTES = 4096
/** After so many steps the compiler has nothing more to do. */
const STEPS = 700
/** After so many steps the space that they wrote is given back. */
const STEPS_A_ROUND = 16

/** @param top the image that is mounted for writing; only its header is used */
export function warmUp(top: LayerSpec, caches: CacheSizes): Iterator<void> {
  const disks = SIZES_BYTES.map(sizeBytes => new ScratchDisk(top, caches, sizeBytes))
  return steps(disks)
}

function* steps(disks: readonly ScratchDisk[]): Generator<void> {
  try {
    for (let step = 0; step < STEPS; step++) {
      for (const disk of disks) disk.use(step)
      yield
    }
  } finally {
    for (const disk of disks) disk.close()
  }
}

class ScratchDisk {
  private readonly fd = memoryFile('vimgfs-warm-up')
  private readonly message = Buffer.allocUnsafeSlow(IN_HEADER.size + WRITE_IN.size + REQUEST_BYTES)
  private readonly memory: DiskMemory
  private readonly layer: LayerSpec
  private readonly responder: Responder
  private readonly node: number

  constructor(
    top: LayerSpec,
    caches: CacheSizes,
    private readonly sizeBytes: number,
  ) {
    const layer = blankLayer(top, this.fd, sizeBytes)
    this.layer = layer
    const store = storeOn(this.fd)
    this.memory = structuredClone(createDiskMemory(layer, 1, store))
    const views = new ViewSet([layer], caches, undefined, { memory: this.memory, thread: 0 })
    const tree = new Tree([structuredClone(entryOf(layer, sizeBytes))], APPEARANCE)
    this.node = tree.disk?.id ?? 0
    const fileSystem = new ImageFs({
      tree,
      views,
      layers: [layer],
      allocated: new Float64Array(new SharedArrayBuffer(8)),
      slots: new TextSlots(),
      controlText: { status: () => '', stats: () => '' },
      isGrowable: false,
      onFlush: () => {},
    })
    const reply = Buffer.from(new SharedArrayBuffer(OUT_HEADER.size + REQUEST_BYTES))
    const fail = (error: unknown) => {
      throw error
    }
    this.responder = new Responder(fileSystem, fail, reply)
    // Zeros that the writer detects: too few, and whole clusters.
    const data = this.message.fill(0xa5).subarray(-REQUEST_BYTES)
    data.fill(0, 0, ZEROS_BYTES - SECTOR_BYTES)
    data.fill(0, REQUEST_BYTES - ZEROS_BYTES)
  }

  /** Does what programs do: reads holes and data, writes new and old places, some of them unaligned. */
  use(step: number): void {
    const round = Math.floor(step / STEPS_A_ROUND)
    const inRound = step % STEPS_A_ROUND
    const base = Math.floor(((round % 3) / 3) * (this.sizeBytes / REQUEST_BYTES)) * REQUEST_BYTES
    if (inRound === 0) this.allocateFrom((round % 2) * this.sizeBytes)
    const at = base + inRound * REQUEST_BYTES
    const shift = step % 4 === 0 ? SECTOR_BYTES : 0
    const bytes = step % 2 === 0 ? REQUEST_BYTES : SMALL_BYTES
    this.read(at, REQUEST_BYTES)
    this.write(at + shift, REQUEST_BYTES)
    this.write(at, bytes)
    this.read(at, bytes)
    if (inRound < STEPS_A_ROUND - 1) return
    this.punch(base, STEPS_A_ROUND * REQUEST_BYTES + shift)
    if (round % 2 === 0) this.ask(OPCODE.FSYNC, FLUSH_IN.size)
    else this.ask(OPCODE.RELEASE, RELEASE_IN.size)
  }

  close(): void {
    closeFile(this.fd)
  }

  /** Makes the scratch disk allocate from `at` on, as in a file that has grown to there. */
  private allocateFrom(at: number): void {
    formatOf(this.layer).writing?.allocateFrom?.(this.memory.format, at)
  }

  private write(offset: number, size: number): void {
    const rest = { fh: 1, writeFlags: 0, lockOwner: NOBODY, flags: 0, padding: 0 }
    WRITE_IN.put(this.message, IN_HEADER.size, { offset, size, ...rest })
    this.ask(OPCODE.WRITE, WRITE_IN.size + size)
  }

  private read(offset: number, size: number): void {
    const rest = { fh: 1, readFlags: 0, lockOwner: NOBODY, flags: 0, padding: 0 }
    READ_IN.put(this.message, IN_HEADER.size, { offset, size, ...rest })
    this.ask(OPCODE.READ, READ_IN.size)
  }

  private punch(offset: number, length: number): void {
    const mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    FALLOCATE_IN.put(this.message, IN_HEADER.size, { fh: 1, offset, length, mode, padding: 0 })
    this.ask(OPCODE.FALLOCATE, FALLOCATE_IN.size)
  }

  private ask(opcode: number, argumentBytes: number): void {
    const length = IN_HEADER.size + argumentBytes
    const sender = { uid: 0, gid: 0, pid: 0, extensionLength: 0, padding: 0 }
    IN_HEADER.put(this.message, 0, { length, opcode, unique: NOBODY, nodeid: this.node, ...sender })
    this.responder.answer(this.message, length)
    const error = this.responder.reply.readInt32LE(OUT_HEADER.at.error)
    if (error !== 0) throw new Error(`opcode ${opcode} fails with ${error}`)
  }
}

const NOBODY = Buffer.alloc(8)
const MODIFIED = { seconds: 0, nanoseconds: 0 }
const APPEARANCE: Appearance = {
  uid: 0,
  gid: 0,
  fileMode: 0o400,
  diskMode: 0o600,
  dirMode: 0o700,
  modified: MODIFIED,
}

const storeOn = (fd: number) =>
  new WritableFileStore('warm-up', fd, new BigInt64Array(new SharedArrayBuffer(8)))

function blankLayer(top: LayerSpec, fd: number, diskBytes: number): LayerSpec {
  const store = storeOn(fd)
  const { path } = store
  const file = {
    path,
    fd,
    sizeBytes: 0,
    allocatedBytes: 0,
    modified: MODIFIED,
    mode: 0o600,
    gid: 0,
  }
  const { format, encryption } = top
  const made = (formatOf(top).writing as FormatWriting<unknown>).blank(top, store, diskBytes, file)
  const bare = { ...file, sizeBytes: store.sizeBytes, format }
  return structuredClone({ ...bare, ...made, ...(encryption && { encryption }) })
}

const entryOf = ({ path }: LayerSpec, sizeBytes: number): CatalogEntry => ({
  name: path,
  kind: 'disk',
  layer: 0,
  startOffset: 0,
  sizeBytes,
  modified: MODIFIED,
  attributes: {},
})
