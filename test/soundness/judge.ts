/**
 * Judges whether a qcow2 image is sound, by the specification and without any code of src/: counts every
 * cluster that the tables point at, and compares. What `qemu-img check` calls a corruption is one here, and more:
 * a table that shares its cluster with anything is one even where the counts agree.
 */
import type { Store } from '../../src/io/store.js'

export interface Bitmap {
  readonly name: string
  readonly isInUse: boolean
  readonly isAuto: boolean
  readonly granularityBytes: number
  /** Whether the granule at `offset` of the disk is marked. */
  isMarked(offset: number): boolean
}

export interface Verdict {
  readonly corruptions: readonly string[]
  /** Clusters that are counted and not used. */
  readonly leaks: number
  /** Of them, those past the end of the file, where a check does not look. */
  readonly leaksBehind: number
  readonly isDirty: boolean
  readonly isMarkedCorrupt: boolean
  readonly autoclear: bigint
  /** Only those that the autoclear bit says are true. */
  readonly bitmaps: readonly Bitmap[]
  /** What the keys are in; nothing where there is none. No writer may change it. */
  readonly luksHeader: Buffer
}

const MAX_REPORTED = 20
const COPIED = 1n << 63n
const COMPRESSED = 1n << 62n
const L1_MASK = 0x00fffffffffffe00n
const BITMAPS_EXTENSION = 0x23852875
const LUKS_EXTENSION = 0x0537be77

type Owner =
  | 'header'
  | 'refcount table'
  | 'refcount block'
  | 'L1'
  | 'L2'
  | 'snapshot table'
  | 'bitmap'
  | 'LUKS header'
  | 'data'
  | 'packed'

export function judge(store: Store): Verdict {
  return new Judge(store).verdict()
}

class Judge {
  private readonly corruptions: string[] = []
  private readonly head: Buffer
  private readonly version: number
  private readonly cluster: number
  private readonly clusterBits: number
  private readonly fileClusters: number
  private readonly references: Uint32Array
  private readonly owners: (Owner | undefined)[] = []
  private readonly refcountBits: number
  private readonly incompatible: bigint
  private readonly autoclear: bigint
  private readonly blocks = new Map<number, Buffer>()
  /** Entries of the active tables with what they say of COPIED. */
  private readonly copied: { what: string; host: number; isCopied: boolean }[] = []
  private readonly bitmaps: Bitmap[] = []
  private leaksBehind = 0

  constructor(private readonly store: Store) {
    this.head = this.take(0, Math.min(4096, store.sizeBytes))
    this.version = this.head.readUInt32BE(4)
    this.clusterBits = this.head.readUInt32BE(20)
    this.cluster = 2 ** this.clusterBits
    this.fileClusters = Math.ceil(store.sizeBytes / this.cluster)
    this.references = new Uint32Array(this.fileClusters)
    const isNew = this.version >= 3
    this.incompatible = isNew ? this.head.readBigUInt64BE(72) : 0n
    this.autoclear = isNew ? this.head.readBigUInt64BE(88) : 0n
    this.refcountBits = isNew ? 2 ** this.head.readUInt32BE(96) : 16
  }

  private get isExtended(): boolean {
    return (this.incompatible & 16n) !== 0n
  }
  private get isExternal(): boolean {
    return (this.incompatible & 4n) !== 0n
  }

  verdict(): Verdict {
    const { head } = this
    this.use(0, this.cluster, 'header')
    this.refcounts()
    const snapshots = this.snapshots()
    this.table(u64(head, 40), head.readUInt32BE(36), 'the disk', true)
    for (const { name, l1At, l1Entries } of snapshots) this.table(l1At, l1Entries, name, false)
    this.readBitmaps()
    const luksHeader = this.luksHeader()
    const leaks = this.compare()
    return {
      corruptions: this.corruptions,
      leaks: leaks + this.leaksBehind,
      leaksBehind: this.leaksBehind,
      isDirty: (this.incompatible & 1n) !== 0n,
      isMarkedCorrupt: (this.incompatible & 2n) !== 0n,
      autoclear: this.autoclear,
      bitmaps: this.bitmaps,
      luksHeader,
    }
  }

  private corrupt(what: string): void {
    if (this.corruptions.length < MAX_REPORTED) this.corruptions.push(what)
  }

  /** Reads bytes of the file; bytes past its end read as zeros. */
  private take(at: number, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    this.store.read(bytes, 0, length, at)
    return bytes
  }

  private use(at: number, bytes: number, owner: Owner, what = owner as string): void {
    const last = Math.ceil((at + bytes) / this.cluster)
    for (let i = Math.floor(at / this.cluster); i < last; i++) {
      if (i >= this.fileClusters) {
        this.corrupt(`${what} at ${at} lies beyond the file's end`)
        return
      }
      const before = this.owners[i]
      const mayShare =
        before === owner && (owner === 'data' || owner === 'packed' || owner === 'L2')
      if (before !== undefined && !mayShare) {
        this.corrupt(`cluster ${i} is both ${before} and ${owner} (${what})`)
      }
      this.owners[i] = owner
      this.references[i] = (this.references[i] as number) + 1
    }
  }

  private refcounts(): void {
    const at = u64(this.head, 48)
    const bytes = this.head.readUInt32BE(56) * this.cluster
    if (at % this.cluster !== 0) this.corrupt(`the refcount table is at ${at}`)
    this.use(at, bytes, 'refcount table')
    const table = this.take(at, bytes)
    const words = new Int32Array(table.buffer, table.byteOffset, table.length / 4)
    for (let i = 0; i * 8 < bytes; i++) {
      if (isEmpty(words, i * 2, 2)) continue
      const block = u64(table, i * 8)
      if (block % this.cluster !== 0) {
        this.corrupt(`refcount block ${i} is at ${block}`)
        continue
      }
      this.use(block, this.cluster, 'refcount block', `refcount block ${i}`)
      this.blocks.set(i, this.take(block, this.cluster))
    }
  }

  /** The stored count of a cluster. */
  private stored(index: number): number {
    const bits = this.refcountBits
    const perBlock = (this.cluster * 8) / bits
    const block = this.blocks.get(Math.floor(index / perBlock))
    if (!block) return 0
    const i = index % perBlock
    if (bits < 8) {
      const byte = block[Math.floor((i * bits) / 8)] as number
      return (byte >> ((i * bits) % 8)) & (2 ** bits - 1)
    }
    if (bits === 16) return block.readUInt16BE(i * 2)
    return bits === 64 ? u64(block, i * 8) : block.readUIntBE((i * bits) / 8, bits / 8)
  }

  private snapshots(): { name: string; l1At: number; l1Entries: number }[] {
    const count = this.head.readUInt32BE(60)
    const start = u64(this.head, 64)
    const found = []
    let at = start
    for (let i = 0; i < count; i++) {
      at = start + Math.ceil((at - start) / 8) * 8
      const entry = this.take(at, 40)
      const length = 40 + entry.readUInt32BE(36) + entry.readUInt16BE(12) + entry.readUInt16BE(14)
      found.push({
        name: `snapshot ${i + 1}`,
        l1At: u64(entry, 0),
        l1Entries: entry.readUInt32BE(8),
      })
      at += length
    }
    if (count > 0) this.use(start, at - start, 'snapshot table')
    return found
  }

  private table(l1At: number, l1Entries: number, whose: string, isActive: boolean): void {
    if (l1Entries === 0) return
    if (l1At % this.cluster !== 0) this.corrupt(`L1 of ${whose} is at ${l1At}`)
    this.use(l1At, l1Entries * 8, 'L1', `L1 of ${whose}`)
    const l1 = this.take(l1At, l1Entries * 8)
    for (let i = 0; i < l1Entries; i++) {
      const entry = l1.readBigUInt64BE(i * 8)
      const l2At = Number(entry & L1_MASK)
      if (l2At === 0) continue
      const what = `L2 ${i} of ${whose}`
      if (l2At % this.cluster !== 0) {
        this.corrupt(`${what} is at ${l2At}`)
        continue
      }
      this.use(l2At, this.cluster, 'L2', what)
      if (isActive) this.copied.push({ what, host: l2At, isCopied: (entry & COPIED) !== 0n })
      this.l2(this.take(l2At, this.cluster), i, whose, isActive)
    }
  }

  private l2(table: Buffer, l1Index: number, whose: string, isActive: boolean): void {
    const entryBytes = this.isExtended ? 16 : 8
    const entries = this.cluster / entryBytes
    // Most entries are empty: those are passed over by words of the machine.
    const words = new Int32Array(table.buffer, table.byteOffset, table.length / 4)
    const wordsAnEntry = entryBytes / 4
    for (let i = 0; i < entries; i++) {
      if (isEmpty(words, i * wordsAnEntry, wordsAnEntry)) continue
      const high = table.readUInt32BE(i * entryBytes)
      const low = table.readUInt32BE(i * entryBytes + 4)
      const bitmap = this.isExtended ? table.readBigUInt64BE(i * entryBytes + 8) : 0n
      const entry = (BigInt(high) << 32n) | BigInt(low)
      const guest = l1Index * entries + i
      this.entry(entry, bitmap, guest, `cluster ${guest} of ${whose}`, isActive)
    }
  }

  private entry(entry: bigint, bitmap: bigint, guest: number, what: string, isActive: boolean) {
    if (entry & COMPRESSED) {
      this.packed(entry, bitmap, what)
      return
    }
    const host = Number(entry & L1_MASK)
    const isCopied = (entry & COPIED) !== 0n
    if (entry & ~(L1_MASK | COPIED | 1n))
      this.corrupt(`${what}: reserved bits ${entry.toString(16)}`)
    if (entry & 1n && (this.version < 3 || this.isExtended)) this.corrupt(`${what}: the zero flag`)
    if ((bitmap >> 32n) & bitmap & 0xffffffffn) this.corrupt(`${what}: data and zero at once`)
    if (host % this.cluster !== 0) {
      this.corrupt(`${what}: unaligned at ${host}`)
      return
    }
    if (this.isExternal) {
      const isAllocated = host !== 0 || isCopied
      if (isAllocated && host !== guest * this.cluster)
        this.corrupt(`${what}: data file at ${host}`)
      if (isAllocated && !isCopied) this.corrupt(`${what}: not COPIED in a data file`)
      return
    }
    if (host === 0) {
      if (isCopied) this.corrupt(`${what}: COPIED, and nowhere`)
      if (bitmap & 0xffffffffn) this.corrupt(`${what}: subclusters allocated nowhere`)
      return
    }
    this.use(host, this.cluster, 'data', what)
    if (isActive) this.copied.push({ what, host, isCopied })
  }

  private packed(entry: bigint, bitmap: bigint, what: string): void {
    const bits = BigInt(62 - (this.clusterBits - 8))
    const at = Number(entry & ((1n << bits) - 1n))
    const sectors = Number((entry & ~(COPIED | COMPRESSED)) >> bits) + 1
    if (entry & COPIED) this.corrupt(`${what}: compressed and COPIED`)
    if (this.isExternal) this.corrupt(`${what}: compressed, with a data file`)
    if (bitmap !== 0n) this.corrupt(`${what}: compressed, with subclusters`)
    this.use(at, sectors * 512 - (at % 512), 'packed', what)
  }

  private luksHeader(): Buffer {
    const extension = this.extension(LUKS_EXTENSION)
    if (!extension) return Buffer.alloc(0)
    const [at, bytes] = [u64(extension, 0), u64(extension, 8)]
    this.use(at, bytes, 'LUKS header')
    return this.take(at, bytes)
  }

  private readBitmaps(): void {
    const extension = this.extension(BITMAPS_EXTENSION)
    if (!extension || (this.autoclear & 1n) === 0n) return
    const count = extension.readUInt32BE(0)
    const bytes = u64(extension, 8)
    const at = u64(extension, 16)
    this.use(at, bytes, 'bitmap', 'the bitmap directory')
    const directory = this.take(at, bytes)
    let end = 0
    for (let i = 0; i < count; i++) {
      const nameAt = end + 24 + directory.readUInt32BE(end + 20)
      const nameEnd = nameAt + directory.readUInt16BE(end + 18)
      this.bitmap(directory.subarray(end, end + 24), directory.toString('utf8', nameAt, nameEnd))
      end = Math.ceil(nameEnd / 8) * 8
    }
    if (end !== bytes) this.corrupt(`the bitmap directory has ${end} of ${bytes} bytes`)
  }

  private bitmap(entry: Buffer, name: string): void {
    const tableAt = u64(entry, 0)
    const entries = entry.readUInt32BE(8)
    const flags = entry.readUInt32BE(12)
    const granularityBytes = 2 ** entry.readUInt8(17)
    this.use(tableAt, entries * 8, 'bitmap', `the table of bitmap ${name}`)
    const table = this.take(tableAt, entries * 8)
    const parts: Buffer[] = []
    for (let i = 0; i < entries; i++) {
      const at = Number(table.readBigUInt64BE(i * 8) & L1_MASK)
      if (at === 0) {
        parts.push(Buffer.alloc(this.cluster, table.readUInt8(i * 8 + 7) & 1 ? 0xff : 0))
        continue
      }
      this.use(at, this.cluster, 'bitmap', `part ${i} of bitmap ${name}`)
      parts.push(this.take(at, this.cluster))
    }
    const bits = Buffer.concat(parts)
    this.bitmaps.push({
      name,
      isInUse: (flags & 1) !== 0,
      isAuto: (flags & 2) !== 0,
      granularityBytes,
      isMarked: offset => {
        const bit = Math.floor(offset / granularityBytes)
        return (((bits[Math.floor(bit / 8)] ?? 0) >> (bit % 8)) & 1) !== 0
      },
    })
  }

  private extension(wanted: number): Buffer | undefined {
    const { head } = this
    const backingAt = u64(head, 8)
    const end = Math.min(backingAt || this.cluster, head.length)
    for (let at = this.version >= 3 ? head.readUInt32BE(100) : 72; at + 8 <= end; ) {
      const type = head.readUInt32BE(at)
      const length = head.readUInt32BE(at + 4)
      if (type === 0) return undefined
      if (type === wanted) return head.subarray(at + 8, at + 8 + length)
      at += 8 + Math.ceil(length / 8) * 8
    }
    return undefined
  }

  private compare(): number {
    let leaks = 0
    const perBlock = (this.cluster * 8) / this.refcountBits
    for (let i = 0; i < this.fileClusters; i++) {
      const used = this.references[i] as number
      const stored = this.stored(i)
      if (stored > used) leaks++
      else if (stored < used) {
        this.corrupt(`cluster ${i} (${this.owners[i]}) is used ${used} times and counted ${stored}`)
      }
    }
    for (const [index, block] of this.blocks) {
      const inFile = Math.max(0, this.fileClusters - index * perBlock)
      const rest = block.subarray(Math.floor((inFile * this.refcountBits) / 8))
      if (inFile >= perBlock || rest.equals(Buffer.alloc(rest.length))) continue
      for (let i = inFile; i < perBlock; i++)
        if (this.stored(index * perBlock + i) > 0) this.leaksBehind++
    }
    for (const { what, host, isCopied } of this.copied) {
      const stored = this.stored(host / this.cluster)
      if ((stored === 1) !== isCopied) {
        this.corrupt(`${what} at ${host}: COPIED is ${isCopied}, its count is ${stored}`)
      }
    }
    return leaks
  }
}

function isEmpty(words: Int32Array, first: number, count: number): boolean {
  for (let i = first; i < first + count; i++) if (words[i] !== 0) return false
  return true
}

const u64 = (b: Buffer, at: number): number => b.readUInt32BE(at) * 2 ** 32 + b.readUInt32BE(at + 4)
