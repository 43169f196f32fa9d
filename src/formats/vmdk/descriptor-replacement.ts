/**
 * Replaces the text of a descriptor, so that a power cut leaves the old text or the new one.
 *
 *  (1) A change within one sector is one write. A text that becomes shorter is filled up with blank lines, or with NULs in an
 *      extent: no rest of the old text may be left until the file is cut off.
 *  (2) For a longer change, a descriptor with a file of its own gets a new file that takes the name.
 *  (3) In an extent, the new text is first written after the old one, within the room for the descriptor. One write of the
 *      extent's header then names that place. Now nothing uses the place of the old text: the new text goes there, too, because
 *      QEMU looks for it nowhere else, and the header names this place again.
 */
import type { WritableStore } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import type { Region } from './grain-tables.js'
import { HEADER } from './sparse-header.js'

const NEWLINE = 0x0a
/** Where extents have their descriptor. */
const USUAL_AT = SECTOR_BYTES

/**
 * Returns a function that writes `text` in place of `old`, the text at `place`, and syncs it; undefined if there is no room for it.
 * `store` must not be used after the function. The function throws SystemError.
 */
export function plannedChange(
  store: WritableStore,
  place: Region,
  old: Buffer,
  text: Buffer,
): (() => void) | undefined {
  if (text.equals(old)) return () => {}
  if (place.offset === 0) return () => replaceOwnFile(store, old, text)
  return planInExtent(store, place.offset, old, text)
}

function replaceOwnFile(store: WritableStore, old: Buffer, text: Buffer): void {
  const change = changeOf(old, padded(text, old.length, NEWLINE))
  if (!isInOneSector(change, 0) && store.replace) {
    store.replace(text)
    return
  }
  write(store, change, 0)
  if (text.length === store.sizeBytes) return
  store.truncate(text.length)
  store.sync()
}

function planInExtent(
  store: WritableStore,
  at: number,
  old: Buffer,
  text: Buffer,
): (() => void) | undefined {
  const room = Number(readHeader(store).descriptorSize) * SECTOR_BYTES
  const whole = padded(text, wholeSectors(Math.max(old.length, text.length)), 0)
  if (at > USUAL_AT && hasOldText(store)) {
    // A power cut has left it after its usual place, which is free since then.
    if (USUAL_AT + whole.length > at) return undefined
    return () => moveTo(store, whole, USUAL_AT, at + room - USUAL_AT)
  }
  if (text.length > room) return undefined
  const change = changeOf(padded(old, whole.length, 0), whole)
  if (isInOneSector(change, at)) return () => write(store, change, at)
  if (2 * whole.length > room) return undefined
  return () => {
    moveTo(store, whole, at + whole.length, room - whole.length)
    moveTo(store, whole, at, room)
    store.write(Buffer.alloc(whole.length), 0, whole.length, at + whole.length)
    store.sync()
  }
}

/** Writes the text to a place that nothing uses, and then names the place in the header. */
function moveTo(store: WritableStore, text: Buffer, at: number, roomBytes: number): void {
  store.write(text, 0, text.length, at)
  store.sync()
  const sector = Buffer.alloc(SECTOR_BYTES)
  store.read(sector, 0, SECTOR_BYTES, 0)
  HEADER.put(sector, 0, {
    ...HEADER.decode(sector),
    descriptorOffset: BigInt(at / SECTOR_BYTES),
    descriptorSize: BigInt(roomBytes / SECTOR_BYTES),
  })
  store.write(sector, 0, SECTOR_BYTES, 0)
  store.sync()
}

function hasOldText(store: WritableStore): boolean {
  const start = Buffer.alloc(16)
  store.read(start, 0, start.length, USUAL_AT)
  return /^# *disk *desc/i.test(start.toString('latin1'))
}

function readHeader(store: WritableStore): ReturnType<typeof HEADER.decode> {
  const sector = Buffer.alloc(SECTOR_BYTES)
  store.read(sector, 0, SECTOR_BYTES, 0)
  return HEADER.decode(sector)
}

interface Change {
  /** Where the text differs. */
  readonly start: number
  readonly bytes: Buffer
}

/** Returns the range in which `text` differs from `old`; `text` is not shorter. */
function changeOf(old: Buffer, text: Buffer): Change {
  const differs = (i: number) => old[i] !== text[i]
  let start = 0
  while (start < text.length && !differs(start)) start++
  let end = text.length
  while (end > start && !differs(end - 1)) end--
  return { start, bytes: text.subarray(start, end) }
}

const isInOneSector = ({ start, bytes }: Change, at: number): boolean =>
  Math.floor((at + start) / SECTOR_BYTES) ===
  Math.floor((at + start + Math.max(0, bytes.length - 1)) / SECTOR_BYTES)

function write(store: WritableStore, { start, bytes }: Change, at: number): void {
  if (bytes.length > 0) store.write(bytes, 0, bytes.length, at + start)
  store.sync()
}

function padded(text: Buffer, length: number, filling: number): Buffer {
  if (text.length >= length) return text
  return Buffer.concat([text, Buffer.alloc(length - text.length, filling)])
}

const wholeSectors = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES
