/**
 * Judges whether a VMDK image is sound, by the specification (VMware, Virtual Disk Format 5.0; libyal, VMDK
 * format) and without any code of src/: gives each sector of each extent its one owner, and compares what
 * the two directories say.
 */
import type { Store } from '../../src/io/store.js'

/** What one extent of the disk is like; ranges are bytes of the whole disk. */
export interface ExtentVerdict {
  readonly file: string
  /**
   * For each sector of the file: 1 if it lies where grains may be, and the first directory reaches
   * nothing there.
   */
  readonly unused: Uint8Array
  /** Of a grain. */
  readonly grainSectors: number
  /** Where the redundant tables differ from the first ones. */
  readonly disagreements: readonly Range[]
  /** Grains that the file ends within. */
  readonly partial: readonly Range[]
  readonly isUnclean: boolean
}

export interface Range {
  readonly offset: number
  readonly length: number
}

/** In grains. */
export interface Leaks {
  /** Where something follows that is in use. */
  readonly between: number
  /** At the end of the file. */
  readonly behind: number
}

export interface VmdkVerdict {
  readonly corruptions: readonly string[]
  /** In the order of the disk; a file that two lines name is there twice. */
  readonly extents: readonly ExtentVerdict[]
  readonly isUnclean: boolean
  /** undefined: there is no descriptor. */
  readonly cid: number | undefined
  readonly parentCid: number | undefined
  readonly longContentId: string | undefined
  /** Bytes that no writer may change, by name. */
  readonly fixed: ReadonlyMap<string, Buffer>
}

const SECTOR = 512
const MAX_REPORTED = 20
const COWD_TABLE_ENTRIES = 4096

const OWNERS = [
  'nothing',
  'the header',
  'the descriptor',
  'the directory',
  'the redundant directory',
  'a table',
  'a redundant table',
  'a grain',
] as const
type Owner = (typeof OWNERS)[number]

/** @param files the image, and its extents by their names, which are their paths */
export function judgeVmdk(files: readonly Store[]): VmdkVerdict {
  return new Judge(files).verdict()
}

interface Line {
  readonly sectors: number
  readonly type: string
  readonly name: string
  readonly start: number
}

class Judge {
  private readonly corruptions: string[] = []
  private readonly fixed = new Map<string, Buffer>()
  private readonly extents: ExtentVerdict[] = []

  constructor(private readonly files: readonly Store[]) {}

  verdict(): VmdkVerdict {
    const image = this.files[0] as Store
    const text = this.descriptor(image)
    const cid = hex(text, CID)
    const parentCid = hex(text, PARENT_CID)
    if (text !== undefined) this.fixed.set('the descriptor', Buffer.from(masked(text), 'latin1'))
    const lines = text === undefined ? [whole()] : linesOf(text)
    // A single extent is the file that its descriptor stands in, whatever its line says.
    const isInside = text === undefined || (lines.length === 1 && isHosted(image))
    let start = 0
    for (const line of lines) {
      const store = isInside ? image : this.files.find(({ path }) => path === line.name)
      this.extent(line, start, store)
      start += line.sectors * SECTOR
    }
    return {
      corruptions: this.corruptions,
      extents: this.extents,
      isUnclean: this.extents.some(({ isUnclean }) => isUnclean),
      cid,
      parentCid,
      longContentId: text === undefined ? undefined : LONG_CONTENT_ID.exec(text)?.[2],
      fixed: this.fixed,
    }
  }

  private descriptor(image: Store): string | undefined {
    if (take(image, 0, 4).toString('latin1') === 'COWD') return undefined
    if (!isHosted(image)) return take(image, 0, image.sizeBytes).toString('latin1')
    const head = take(image, 0, SECTOR)
    if (u64(head, 36) === 0) return undefined
    const text = take(image, u64(head, 28) * SECTOR, u64(head, 36) * SECTOR).toString('latin1')
    const end = text.indexOf('\0')
    // Bytes after the text are part of the descriptor's room, and stay.
    this.fixed.set('the space after the descriptor', Buffer.from(text.slice(end), 'latin1'))
    return text.slice(0, end)
  }

  private extent(line: Line, start: number, store: Store | undefined): void {
    if (line.type === 'ZERO') this.extents.push(grainless(''))
    else if (!store) throw new Error(`there is no file ${line.name}`)
    else if (line.type === 'FLAT' || line.type === 'VMFS') this.flat(line, store)
    else
      this.extents.push(new ExtentJudge(store, line, start, this.corruptions, this.fixed).judge())
  }

  private flat({ sectors, start, name }: Line, store: Store): void {
    const from = start * SECTOR
    const end = from + sectors * SECTOR
    if (store.sizeBytes < end) this.corruptions.push(`${name} ends at ${store.sizeBytes}`)
    this.extents.push(grainless(name))
    const others = this.fixed.get(name) ?? take(store, 0, store.sizeBytes)
    others.fill(0, from, end)
    this.fixed.set(name, others)
  }
}

/** One sparse extent. */
class ExtentJudge {
  private readonly isHosted: boolean
  private readonly head: Buffer
  private readonly capacity: number
  private readonly grain: number
  private readonly tableEntries: number
  private readonly tableSectors: number
  private readonly directoryEntries: number
  private readonly hasZeroGrains: boolean
  /** Of each sector of the file, by its place in OWNERS. */
  private readonly owners: Uint8Array
  private readonly disagreements: Range[] = []
  private readonly partial: Range[] = []
  /** Sectors after the last that entries point at. */
  private usedEnd = 0
  private readonly unused: Uint8Array

  /** @param start of the extent on the disk, in bytes */
  constructor(
    private readonly store: Store,
    line: Line,
    private readonly start: number,
    private readonly corruptions: string[],
    fixed: Map<string, Buffer>,
  ) {
    const { path } = store
    this.isHosted = isHosted(store)
    this.head = take(store, 0, this.isHosted ? SECTOR : 4 * SECTOR)
    const { head } = this
    this.capacity = this.isHosted ? u64(head, 12) : head.readUInt32LE(12)
    this.grain = this.isHosted ? u64(head, 20) : head.readUInt32LE(16)
    this.tableEntries = this.isHosted ? head.readUInt32LE(44) : COWD_TABLE_ENTRIES
    this.tableSectors = Math.ceil((this.tableEntries * 4) / SECTOR)
    this.hasZeroGrains = this.isHosted && (head.readUInt32LE(8) & 4) !== 0
    this.directoryEntries = this.isHosted
      ? Math.ceil(this.capacity / (this.grain * this.tableEntries))
      : head.readUInt32LE(24)
    this.owners = new Uint8Array(Math.ceil(store.sizeBytes / SECTOR))
    this.unused = new Uint8Array(this.owners.length)
    if (this.capacity < line.sectors) this.corrupt(`it holds ${this.capacity} sectors`)
    const kept = Buffer.from(head)
    if (this.isHosted) kept[72] = 0
    else {
      kept.fill(0, 28, 32)
      kept.fill(0, 1648, 1652)
    }
    fixed.set(`the header of ${path}`, kept)
  }

  judge(): ExtentVerdict {
    const { head, isHosted } = this
    this.use(0, isHosted ? 1 : 4, 'the header')
    if (isHosted && u64(head, 28) > 0) this.use(u64(head, 28), u64(head, 36), 'the descriptor')
    const first = this.directory(isHosted ? u64(head, 56) : head.readUInt32LE(20), true)
    const hasRedundant = isHosted && (head.readUInt32LE(8) & 2) !== 0
    const redundant = hasRedundant ? this.directory(u64(head, 48), false) : undefined
    for (let index = 0; index < this.directoryEntries; index++) {
      this.tables(index, first[index] as number, redundant?.[index])
    }
    if (!isHosted && head.readUInt32LE(28) < this.usedEnd) {
      const free = head.readUInt32LE(28)
      this.corrupt(`the free sector is ${free}, and entries reach to ${this.usedEnd}`)
    }
    for (let at = this.frontEnd(); at < this.owners.length; at++) {
      if (this.owners[at] === 0) this.unused[at] = 1
    }
    return {
      file: this.store.path,
      unused: this.unused,
      grainSectors: this.grain,
      disagreements: this.disagreements,
      partial: this.partial,
      isUnclean: isHosted ? head[72] !== 0 : head.readUInt32LE(1648) !== 0,
    }
  }

  private corrupt(what: string): void {
    if (this.corruptions.length < MAX_REPORTED) {
      this.corruptions.push(`${this.store.path}: ${what}`)
    }
  }

  private use(at: number, sectors: number, owner: Owner, what: string = owner): void {
    if (at + sectors > this.owners.length) {
      this.corrupt(`${what} at sector ${at} lies beyond the file's end`)
      return
    }
    const code = OWNERS.indexOf(owner)
    for (let sector = at; sector < at + sectors; sector++) {
      const before = this.owners[sector] as number
      if (before !== 0) {
        this.corrupt(`sector ${sector} belongs to ${OWNERS[before]} and to ${what}`)
        return
      }
      this.owners[sector] = code
    }
  }

  private directory(at: number, isFirst: boolean): Uint32Array {
    const sectors = Math.ceil((this.directoryEntries * 4) / SECTOR)
    this.use(at, sectors, isFirst ? 'the directory' : 'the redundant directory')
    return words(take(this.store, at * SECTOR, this.directoryEntries * 4))
  }

  /** What a table says; one that is absent says nothing of any grain. */
  private table(at: number, index: number, isFirst: boolean): Uint32Array {
    if (at === 0) return new Uint32Array(this.tableEntries)
    const owner = isFirst ? 'a table' : 'a redundant table'
    this.use(at, this.tableSectors, owner, `${owner}, ${index}`)
    if (isFirst) this.usedEnd = Math.max(this.usedEnd, at + this.tableSectors)
    return words(take(this.store, at * SECTOR, this.tableEntries * 4))
  }

  private tables(index: number, firstAt: number, redundantAt: number | undefined): void {
    const first = this.table(firstAt, index, true)
    const redundant = redundantAt === undefined ? first : this.table(redundantAt, index, false)
    if (firstAt === 0 && redundantAt) this.isUnused(redundantAt, this.tableSectors)
    const grain = this.grain * SECTOR
    if (redundantAt !== undefined && (firstAt === 0) !== (redundantAt === 0)) {
      this.disagree(index * this.tableEntries * grain, this.tableEntries * grain)
    }
    first.forEach((entry, i) => {
      const other = redundant[i] as number
      if (entry === 0 && other === 0) return
      const number = index * this.tableEntries + i
      if (number * this.grain >= this.capacity) {
        this.corrupt(`grain ${number} lies past the disk's end, and has an entry`)
      }
      if (entry !== other) this.disagree(number * grain, grain)
      if (this.isPlace(entry)) this.useGrain(entry, number)
      if (entry === other || !this.isPlace(other)) return
      this.use(other, this.grain, 'a grain', `grain ${number} by the redundant table alone`)
      if (!this.isPlace(entry)) this.isUnused(other, this.grain)
      else this.corrupt(`grain ${number} is at ${entry}, and at ${other} by the redundant table`)
    })
  }

  /** A place that only the redundant directory names. */
  private isUnused(at: number, sectors: number): void {
    this.unused.fill(1, at, at + sectors)
  }

  private isPlace(entry: number): boolean {
    return entry !== 0 && !(entry === 1 && this.hasZeroGrains)
  }

  private useGrain(at: number, number: number): void {
    const missing = (at + this.grain) * SECTOR - this.store.sizeBytes
    const isPartial = missing > 0 && at * SECTOR < this.store.sizeBytes
    if (isPartial) this.partial.push(this.onDisk(number * this.grain * SECTOR, this.grain * SECTOR))
    const inFile = isPartial ? this.owners.length - at : this.grain
    this.use(at, inFile, 'a grain', `grain ${number}`)
    this.usedEnd = Math.max(this.usedEnd, at + inFile)
  }

  private disagree(offset: number, length: number): void {
    this.disagreements.push(this.onDisk(offset, length))
  }

  private onDisk(offset: number, length: number): Range {
    return { offset: this.start + offset, length }
  }

  /** Where the space for grains begins. */
  private frontEnd(): number {
    if (this.isHosted) return u64(this.head, 64)
    return this.head.readUInt32LE(20) + Math.ceil((this.directoryEntries * 4) / SECTOR)
  }
}

/**
 * Returns the space that an extent has stopped using. A gap of less than a grain between two things comes
 * from aligning them; after the last thing it is space that was never used.
 */
export function leaksOf({ unused, grainSectors }: ExtentVerdict, before?: ExtentVerdict): Leaks {
  let between = 0
  const isLeak = (sector: number) => unused[sector] === 1 && before?.unused[sector] !== 1
  for (let at = 0; at < unused.length; at++) {
    if (!isLeak(at)) continue
    const from = at
    while (at < unused.length && isLeak(at)) at++
    if (at === unused.length) return { between, behind: Math.ceil((at - from) / grainSectors) }
    between += Math.floor((at - from) / grainSectors)
  }
  return { between, behind: 0 }
}

const CID = /^([ \t]*CID[ \t]*=[ \t]*)([0-9a-f]+)/im
const PARENT_CID = /^([ \t]*parentCID[ \t]*=[ \t]*)([0-9a-f]+)/im
const LONG_CONTENT_ID = /^([ \t]*ddb\.longContentID[ \t]*=[ \t]*"?)([0-9a-f]+)/im
const EXTENT = /^(?:RW|RDONLY|NOACCESS) +(\d+) +([A-Z]+)(?: +"(.*)"(?: +(\d+))?)?[ \t\r]*$/gm

const hex = (text: string | undefined, key: RegExp): number | undefined => {
  const digits = text === undefined ? undefined : key.exec(text)?.[2]
  return digits === undefined ? undefined : Number.parseInt(digits, 16)
}

/** The descriptor without what a writer changes, each character where it was. */
const masked = (text: string): string =>
  text
    .replace(CID, (_, key: string, digits: string) => key + '?'.repeat(digits.length))
    .replace(LONG_CONTENT_ID, (_, key: string, digits: string) => {
      return `${key}${digits.slice(0, -8)}${'?'.repeat(Math.min(8, digits.length))}`
    })

const linesOf = (text: string): Line[] =>
  [...text.matchAll(EXTENT)].map(([, sectors, type = '', name = '', start = '0']) => ({
    sectors: Number(sectors),
    type,
    name,
    start: Number(start),
  }))

const isHosted = (store: Store): boolean => take(store, 0, 4).toString('latin1') === 'KDMV'

const grainless = (file: string): ExtentVerdict => ({
  file,
  unused: new Uint8Array(0),
  grainSectors: 1,
  disagreements: [],
  partial: [],
  isUnclean: false,
})

/** An extent without a descriptor: all of it is the disk, and the judge of extents knows how much that is. */
const whole = (): Line => ({ sectors: 0, type: 'SPARSE', name: '', start: 0 })

/** Reads bytes of a file; bytes past its end read as zeros. */
function take(store: Store, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  store.read(bytes, 0, length, at)
  return bytes
}

function words(bytes: Buffer): Uint32Array {
  const read = new Uint32Array(bytes.length / 4)
  for (let i = 0; i < read.length; i++) read[i] = bytes.readUInt32LE(i * 4)
  return read
}

const u64 = (b: Buffer, at: number): number => Number(b.readBigUInt64LE(at))
