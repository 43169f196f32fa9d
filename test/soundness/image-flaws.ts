/** The program's own writers with faults put in: show that the harness catches them. */
import type { SectorCipher } from '../../src/crypto/spec.js'
import type { Reservation, WritableDriver } from '../../src/formats/writable.js'
import { type StoreCipher, WritableCipherStore } from '../../src/io/cipher-store.js'
import type { WritableStore } from '../../src/io/store.js'
import { WrappedStore } from '../support/stores.js'
import type { Changes, DiskFiles, OpenDisk } from '../support/writable.js'

export type ImageFlaw =
  /** A flush syncs once, when all is written: an entry may reach the disk before the data it names. */
  | 'links early'
  /** A flush returns before the entries that name data are synced. */
  | 'forgets to sync'
  /** New space is space that something else was just given. */
  | 'hands out space twice'
  /** Space overlaps what lies before it by a sector. */
  | 'hands out too little'
  /** Bytes of new space that nobody wrote are taken for zeros, whatever they hold. */
  | 'takes space for zeros'
  /** The parent's bytes beside a write are not copied. */
  | 'forgets the parent'
  /** A byte of the header changes. */
  | 'touches the header'
  /** Sectors of an encrypted disk have the numbers that they have in the file. */
  | 'counts by the file'
  /** Of several sectors that are encrypted at once, all but the first have wrong numbers. */
  | 'counts wrong'
  /** A write of a part of a sector makes the rest of it zeros. */
  | 'loses the rest of a sector'
  /** Zeros are stored as a hole of the file, which decrypts to other bytes. */
  | 'makes holes of zeros'

const SECTOR = 512

/** A byte that nothing reads, but every writer must keep. */
const HEADER_BYTE = 21

type Open = (files: DiskFiles, changes?: Changes) => OpenDisk

/** As `open`, but wrong. */
export const flawedOpen =
  (open: Open, flaw?: ImageFlaw): Open =>
  files => {
    const store = new FlawedStore(files.store, flaw)
    const { cipher } = files
    const driver = (writer: WritableDriver) => flawedDriver(writer, store, flaw)
    return open(
      { ...files, store, cipher: cipher && flawedCipher(cipher, flaw) },
      {
        driver,
        forgetsParent: flaw === 'forgets the parent',
        ...(cipher &&
          flaw === 'loses the rest of a sector' && {
            store: () => new ForgetfulStore(files.dataStore ?? store, cipher),
          }),
      },
    )
  }

function flawedDriver(
  writer: WritableDriver,
  store: FlawedStore,
  flaw: ImageFlaw | undefined,
): WritableDriver {
  let last = -1
  const change: Partial<WritableDriver> = {
    reserve(offset, length) {
      const reservation = writer.reserve(offset, length)
      const moved = { ...reservation, at: placeOf(reservation, last, flaw) }
      last = reservation.at
      return flaw === 'takes space for zeros' ? { ...moved, isZeroed: true } : moved
    },
    zeroUnits(offset, length) {
      const found = writer.lookup(offset, length)
      if (flaw !== 'makes holes of zeros' || found.kind !== 'data') {
        return writer.zeroUnits(offset, length)
      }
      store.punch(found.at, found.length)
      return found.length
    },
    collect() {
      const flush = writer.collect()
      const run = () => {
        store.isFlushing = true
        flush.run()
        store.endFlush()
      }
      return { run, settle: () => flush.settle(), hasMore: flush.hasMore }
    },
  }
  return new Proxy(writer, {
    get(target, name) {
      const value: unknown = Reflect.get(change, name) ?? Reflect.get(target, name)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

function placeOf({ at }: Reservation, last: number, flaw: ImageFlaw | undefined): number {
  if (flaw === 'hands out space twice' && last >= 0) return last
  return flaw === 'hands out too little' ? at - SECTOR : at
}

class FlawedStore extends WrappedStore {
  isFlushing = false
  /** Whether this flush has written an entry that names data. */
  private hasLinked = false
  private isSyncOwed = false

  constructor(
    inner: WritableStore,
    private readonly flaw: ImageFlaw | undefined,
  ) {
    super(inner)
  }

  override write(source: Buffer, start: number, length: number, at: number): void {
    super.write(source, start, length, at)
    this.hasLinked ||= this.isFlushing
    if (this.flaw === 'touches the header') super.write(Buffer.of(9), 0, 1, HEADER_BYTE)
  }

  override sync(): void {
    if (this.hasLinked && this.flaw === 'forgets to sync') return
    if (this.isFlushing && this.flaw === 'links early') {
      this.isSyncOwed = true
      return
    }
    super.sync()
  }

  endFlush(): void {
    this.isFlushing = false
    this.hasLinked = false
    if (this.isSyncOwed) super.sync()
    this.isSyncOwed = false
  }
}

function flawedCipher(how: StoreCipher, flaw: ImageFlaw | undefined): StoreCipher {
  if (flaw === 'counts by the file') return { ...how, countsBy: 'file' }
  if (flaw !== 'counts wrong') return how
  const { cipher } = how
  const wrong: SectorCipher = {
    encrypt(source, start, length, target, at, sector) {
      cipher.encrypt(source, start, length, target, at, sector)
      if (length === SECTOR) return
      const rest = length - SECTOR
      // A buffer that was encrypted in place is no source any more.
      if (source === target) return
      cipher.encrypt(source, start + SECTOR, rest, target, at + SECTOR, sector + 2)
    },
    decrypt: (...all) => cipher.decrypt(...all),
  }
  return { ...how, cipher: wrong }
}

class ForgetfulStore extends WritableCipherStore {
  override write(source: Buffer, start: number, length: number, at: number, offset = 0): void {
    const head = at % SECTOR
    const whole = Buffer.alloc(Math.ceil((head + length) / SECTOR) * SECTOR)
    source.copy(whole, head, start, start + length)
    super.write(whole, 0, whole.length, at - head, offset - head)
  }
}
