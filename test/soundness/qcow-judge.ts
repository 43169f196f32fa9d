/**
 * Judges whether a qcow image is sound, by the description of the format (libyal, QEMU Copy-On-Write file format;
 * QEMU block/qcow.c) and without any code of src/: gives each byte of the file its one owner, and reads the disk by
 * the tables.
 */
import { constants, inflateRawSync } from 'node:zlib'
import type { Store } from '../../src/io/store.js'
import { type ImageVerdict, USE } from './image-scenario.js'
import { decrypted, type Encryption } from './reference-cipher.js'

const SECTOR = 512
const HEADER_BYTES = 48
const MAX_REPORTED = 20
const COMPRESSED = 1n << 63n

/** Bytes of the file, and what they are. */
interface Part {
  readonly from: number
  readonly to: number
  readonly what: string
}

interface Below {
  readonly parent: Buffer | undefined
  readonly encryption: Encryption | undefined
}

export const judgeQcow = (store: Store, below: Below): ImageVerdict =>
  new Judge(store, below).verdict()

class Judge {
  private readonly corruptions: string[] = []
  private readonly parts: Part[] = []
  private readonly uses: Uint8Array
  private readonly cluster: number
  private readonly clusterBits: number
  private readonly l2Entries: number
  private readonly disk: Buffer
  private readonly l1At: number
  private readonly l1Entries: number

  constructor(
    private readonly store: Store,
    { parent, encryption }: Below,
  ) {
    this.encryption = encryption
    const head = take(store, 0, HEADER_BYTES)
    const sizeBytes = Number(head.readBigUInt64BE(24))
    this.clusterBits = head.readUInt8(32)
    this.cluster = 2 ** this.clusterBits
    this.l2Entries = 2 ** head.readUInt8(33)
    this.l1At = Number(head.readBigUInt64BE(40))
    this.l1Entries = Math.ceil(sizeBytes / (this.cluster * this.l2Entries))
    this.uses = new Uint8Array(Math.ceil(store.sizeBytes / SECTOR))
    this.disk = Buffer.alloc(sizeBytes)
    parent?.copy(this.disk, 0, 0, sizeBytes)
  }

  private readonly encryption: Encryption | undefined

  verdict(): ImageVerdict {
    const head = take(this.store, 0, HEADER_BYTES)
    const nameAt = Number(head.readBigUInt64BE(8))
    const nameBytes = nameAt === 0 ? 0 : head.readUInt32BE(16)
    this.use(0, HEADER_BYTES, 'the header')
    this.use(nameAt, nameBytes, "the backing file's name")
    this.use(this.l1At, this.l1Entries * 8, 'the L1 table')
    const l1 = take(this.store, this.l1At, this.l1Entries * 8)
    for (let i = 0; i < this.l1Entries; i++) {
      const table = Number(l1.readBigUInt64BE(i * 8))
      if (table !== 0) this.table(table, i)
    }
    this.compareParts()
    const fixed = new Map([
      ['the header', head],
      ["the backing file's name", take(this.store, nameAt, nameBytes)],
    ])
    return { corruptions: this.corruptions, disk: this.disk, fixed, uses: this.uses }
  }

  private table(at: number, index: number): void {
    const bytes = this.l2Entries * 8
    const what = `the L2 table ${index}`
    if (at % SECTOR !== 0) this.corrupt(`${what} is at ${at}, no sector`)
    if (at >= this.store.sizeBytes) {
      this.corrupt(`${what} is named and not there`)
      return
    }
    if (at + bytes > this.store.sizeBytes) this.corrupt(`${what} is cut off by the file's end`)
    this.use(at, bytes, what)
    const table = take(this.store, at, bytes)
    for (let i = 0; i < this.l2Entries; i++) {
      const entry = table.readBigUInt64BE(i * 8)
      if (entry === 0n) continue
      const number = index * this.l2Entries + i
      if (number * this.cluster >= this.disk.length) {
        this.corrupt(`cluster ${number} lies past the disk's end, and has an entry`)
      } else if (entry & COMPRESSED) this.packed(entry, number)
      else this.data(Number(entry), number)
    }
  }

  private data(at: number, number: number): void {
    const what = `cluster ${number}`
    if (at % SECTOR !== 0) this.corrupt(`${what} is at ${at}, no sector`)
    if (at >= this.store.sizeBytes) {
      this.corrupt(`${what} is beyond the end of the file`)
      return
    }
    this.use(at, this.cluster, what, USE.cluster)
    const { encryption } = this
    const bytes = take(this.store, at, this.cluster)
    const first = encryption?.countsBy === 'disk' ? number * this.cluster : at
    const plain = encryption ? decrypted(encryption, bytes, first / SECTOR) : bytes
    plain.copy(this.disk, number * this.cluster)
  }

  private packed(entry: bigint, number: number): void {
    const offsetBits = BigInt(63 - this.clusterBits)
    const at = Number(entry & ((1n << offsetBits) - 1n))
    const bytes = Number((entry & (COMPRESSED - 1n)) >> offsetBits)
    this.use(at, bytes, `cluster ${number}, compressed`, USE.packed)
    try {
      const options = { finishFlush: constants.Z_SYNC_FLUSH, maxOutputLength: this.cluster }
      inflateRawSync(take(this.store, at, bytes), options).copy(this.disk, number * this.cluster)
    } catch (error) {
      this.corrupt(`cluster ${number} does not decompress: ${(error as Error).message}`)
    }
  }

  private use(at: number, bytes: number, what: string, use: number = USE.metadata): void {
    if (bytes === 0) return
    this.parts.push({ from: at, to: at + bytes, what })
    this.uses.fill(use, Math.floor(at / SECTOR), Math.ceil((at + bytes) / SECTOR))
  }

  /** No byte belongs to two. */
  private compareParts(): void {
    this.parts.sort((a, b) => a.from - b.from)
    this.parts.forEach((part, i) => {
      const before = this.parts[i - 1]
      if (before && part.from < before.to) {
        this.corrupt(`${part.what} at ${part.from} lies over ${before.what}`)
      }
    })
  }

  private corrupt(what: string): void {
    if (this.corruptions.length < MAX_REPORTED) this.corruptions.push(what)
  }
}

/** Reads bytes of a file; bytes past its end read as zeros. */
function take(store: Store, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  store.read(bytes, 0, length, at)
  return bytes
}
