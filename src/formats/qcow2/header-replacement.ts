/**
 * Replaces the header, its extensions and the name of the backing file (QEMU docs/interop/qcow2.rst, "Header" and "Header
 * extensions"). Only writes within the first sector make something valid, so a power cut leaves the old header or the new one.
 *
 *  (1) The name goes to a place that nothing uses, and is on the disk before the header names it.
 *  (2) If nothing but the first sector changes, one write of it is all.
 *  (3) If extensions past the first sector move, they are first written to a place that nothing uses. The first sector then gets
 *      the new fields, and an extension that reaches up to that place: readers skip types that they do not know. Now nothing
 *      uses the extensions' final place. They are written there, and the first sector after them.
 */
import { u32be, u64be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import {
  EXTENSION,
  EXTENSION_HEADER,
  type RawExtension,
  rawExtensions,
} from './header-extensions.js'
import { FIELD_AT } from './header-layout.js'

const ALIGNMENT = 8

export const aligned = (bytes: number): number => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT

/** The header cluster as it is. */
export interface OldHead {
  readonly bytes: Buffer
  readonly nameAt: number
  readonly name: Buffer
  readonly extensions: readonly RawExtension[]
  /** The end of all that it uses. */
  readonly end: number
}

export interface NewHead {
  /** The fields: without the extensions. The place of the name is filled in. */
  readonly fields: Buffer
  readonly extensions: readonly RawExtension[]
  /** The name of the backing file; empty if there is none. */
  readonly name: Buffer
}

/** Reads the header cluster. @param headerBytes the length of its fields */
export function readHead(store: Store, clusterBytes: number, headerBytes: number): OldHead {
  const bytes = Buffer.alloc(clusterBytes)
  store.read(bytes, 0, bytes.length, 0)
  const nameAt = u64be.get(bytes, FIELD_AT.backingNameOffset)
  const nameEnd = nameAt > 0 ? nameAt + u32be.get(bytes, FIELD_AT.backingNameBytes) : 0
  const { all, end } = rawExtensions(bytes.subarray(0, nameAt || bytes.length), headerBytes)
  return {
    ...{ bytes, nameAt, name: bytes.subarray(nameAt, nameEnd) },
    extensions: all.filter(({ type }) => type !== EXTENSION.gap),
    end: Math.max(end, nameEnd),
  }
}

/** Returns whether there is room for the new header beside the old one. */
export const hasRoom = (old: OldHead, head: NewHead): boolean => planned(old, head) !== undefined

/**
 * Replaces the header. The names of features give way if there is no room otherwise: they only explain bits that a program does
 * not know. Throws ImageError if there is still no room, and then nothing has changed; SystemError.
 */
export function replaceHead(store: WritableStore, old: OldHead, head: NewHead): void {
  const plan = planned(old, head)
  if (!plan) {
    throw new ImageError('UNSUPPORTED', 'its header has no room for the change', {
      path: store.path,
      hint: 'use a shorter name of the backing file, or convert it to an image with larger clusters',
    })
  }
  const { final, name, nameAt, spare } = plan
  if (name.length > 0) store.write(name, 0, name.length, nameAt)
  if (spare) store.write(spare.bytes, 0, spare.bytes.length, spare.at)
  if (name.length > 0 || spare) store.sync()
  if (spare) {
    const first = Buffer.concat([
      final.subarray(0, plan.fieldBytes),
      EXTENSION_HEADER.encode({
        type: EXTENSION.gap,
        length: spare.at - plan.fieldBytes - EXTENSION_HEADER.size,
      }),
    ])
    store.write(first, 0, first.length, 0)
    store.sync()
    store.write(final, SECTOR_BYTES, final.length - SECTOR_BYTES, SECTOR_BYTES)
    store.sync()
  }
  store.write(final, 0, Math.min(final.length, SECTOR_BYTES), 0)
  store.sync()
  clear(store, plan)
}

interface Plan {
  readonly fieldBytes: number
  /** The fields, the extensions and their end. */
  readonly final: Buffer
  readonly name: Buffer
  readonly nameAt: number
  /** A copy of the extensions, for the time in which their own place is written. */
  readonly spare: { readonly at: number; readonly bytes: Buffer } | undefined
  /** The end of all that was used before or meanwhile. */
  readonly end: number
}

function planned(old: OldHead, head: NewHead): Plan | undefined {
  const brief = head.extensions.filter(({ type }) => type !== EXTENSION.featureNames)
  return planFor(old, head) ?? planFor(old, { ...head, extensions: brief })
}

/** Returns undefined if there is no room. */
function planFor(old: OldHead, { fields, extensions, name }: NewHead): Plan | undefined {
  const ending = Buffer.alloc(EXTENSION_HEADER.size)
  const list = Buffer.concat([...extensions.map(({ bytes }) => bytes), ending])
  const final = Buffer.concat([fields, list])
  const rest = final.subarray(SECTOR_BYTES)
  const isOneSector = rest.equals(old.bytes.subarray(SECTOR_BYTES, final.length))
  const listAt = aligned(Math.max(final.length, old.end))
  const spare = isOneSector ? undefined : { at: listAt, bytes: list }
  const free = spare ? aligned(listAt + list.length) : placeBeside(old, final.length, name.length)
  const nameAt = name.length > 0 ? free : 0
  const end = Math.max(old.end, free + name.length)
  const isGapPossible = fields.length + EXTENSION_HEADER.size <= SECTOR_BYTES
  if (end > old.bytes.length || final.length > old.bytes.length) return undefined
  if (spare && !isGapPossible) return undefined
  u64be.put(final, FIELD_AT.backingNameOffset, nameAt)
  u32be.put(final, FIELD_AT.backingNameBytes, name.length)
  return { fieldBytes: fields.length, final, name, nameAt, spare, end }
}

/** Returns a place for a name that touches neither the extensions, old and new, nor the old name. */
function placeBeside({ nameAt, name, end }: OldHead, finalBytes: number, bytes: number): number {
  const isBefore = nameAt > 0
  const listEnd = isBefore ? Math.min(end, nameAt) : end
  const first = aligned(Math.max(finalBytes, listEnd))
  return isBefore && first + bytes > nameAt ? aligned(Math.max(first, nameAt + name.length)) : first
}

/** Zeroes what was used and is not any more. */
function clear(store: WritableStore, { final, name, nameAt, end }: Plan): void {
  const ranges =
    nameAt > 0
      ? [
          [final.length, nameAt],
          [nameAt + name.length, end],
        ]
      : [[final.length, end]]
  let hasCleared = false
  for (const [from = 0, to = 0] of ranges) {
    if (to <= from) continue
    store.write(Buffer.alloc(to - from), 0, to - from, from)
    hasCleared = true
  }
  if (hasCleared) store.sync()
}
