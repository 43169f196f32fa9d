/** Finds the format of a file by its first bytes. */
import path from 'node:path'
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'
import { type Format, PROBED_BYTES } from './format.js'
import { FOREIGN, FORMATS_READ, RAW, RECOGNISED } from './registry.js'
import { SECTOR_BYTES } from '../sector.js'

/** Suffixes that promise another format than raw. */
const IMAGE_SUFFIXES = [...RECOGNISED, ...FOREIGN].flatMap(({ suffixes }) => suffixes)

/** Returns the format of `store`. Throws ImageError for a format that is known but not read. */
export function probe(store: Store): Format {
  const buffer = Buffer.alloc(PROBED_BYTES)
  const head = buffer.subarray(0, store.read(buffer, 0, buffer.length, 0))
  const foreign = foreignFormat(head)
  if (foreign !== undefined) {
    throw new ImageError('UNSUPPORTED', `${foreign} images are not read yet`, {
      path: store.path,
      hint: `${FORMATS_READ} are; make a copy that is read with qemu-img convert -f ${foreign} -O qcow2`,
    })
  }
  return (
    RECOGNISED.find(format => format.matches(head)) ??
    RECOGNISED.find(format => format.matchesStore?.(store)) ??
    RAW
  )
}

/** Returns the name of the format that an image with these first bytes is probed as, read or not. */
export const probedName = (head: Buffer): string =>
  foreignFormat(head) ?? (RECOGNISED.find(format => format.matches(head)) ?? RAW).name

const foreignFormat = (head: Buffer): string | undefined =>
  FOREIGN.find(format => format.matches(head))?.name

/** Does the same for the file that the user named: a file that cannot be a raw disk is not taken for one. */
export function probeGiven(store: Store): Format {
  const format = probe(store)
  if (format !== RAW) return format
  const suffix = path.extname(store.path).toLowerCase()
  const problem = IMAGE_SUFFIXES.includes(suffix)
    ? `this is no ${suffix.slice(1)} image: nothing at its start says so`
    : store.sizeBytes < SECTOR_BYTES
      ? `this is no disk image: it has ${store.sizeBytes} bytes and no known format`
      : undefined
  if (problem === undefined) return format
  for (const { explainUnmatched } of RECOGNISED) {
    const explained = explainUnmatched?.(store.path)
    if (explained) throw explained
  }
  throw new ImageError('NOT_AN_IMAGE', problem, {
    path: store.path,
    hint: 'restore it from a copy, or show it as it is with --format raw',
  })
}
