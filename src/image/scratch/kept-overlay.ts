/**
 * The overlay of `-o scratch=FILE`: an ordinary image on top of the mounted one, which keeps what is written to the disk. A note in
 * it says in what state the image was: on any other state its clusters would make no disk.
 */
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { ImageError } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf, SCRATCH_FORMAT } from '../../formats/registry.js'
import type { Chain } from '../opening/chain.js'
import { closeChain } from '../opening/chain.js'
import { unlockChain } from '../opening/encryption.js'
import { diskBytes, filesFrom, referenceOf, storeOf } from '../layer.js'
import { NewFiles } from '../making/new-files.js'
import { beginImage, targetOf } from '../making/new-image.js'
import { openChain } from '../opening/open-chain.js'
import { requireOwnFile } from '../opening/archive.js'
import { OPENED_FILES } from '../opening/store-source.js'
import { ViewSet } from '../reading/view-set.js'
import { SINGLE_THREAD_CACHES } from '../writing/written-set.js'

/** The first bytes of each file that count: they hold headers, and of a qcow2 the place of its snapshots. */
const HEAD_BYTES = 4096
/** As those of scratch copies: a write of a page copies nothing. */
const SHAPE = { cluster_size: 128 * 1024, extended_l2: true }

/**
 * Opens the overlay at `file` for writing, with locks, and makes it if there is none. Throws ImageError if it stands on another image,
 * or on another state of this one; SystemError.
 * @param chain the image, open and unlocked
 */
export async function openKeptOverlay(file: string, chain: Chain): Promise<LayerSpec> {
  const [image] = chain.layers
  if (chain.layers.some(({ encryption }) => encryption)) {
    throw new ImageError(
      'UNSUPPORTED',
      'it is encrypted, and the file of -o scratch would not be',
      {
        path: image.path,
        hint: 'use -o scratch without a file: that encrypts what it writes',
      },
    )
  }
  requireOwnFile(image)
  const full = path.resolve(file)
  if (isSameFile(full, image.fd)) {
    throw new ImageError('REFUSED', 'this is the image itself', {
      path: full,
      hint: 'name another file, which may be new',
    })
  }
  const isNew = !fs.existsSync(full)
  if (isNew) await make(full, image)
  const opened = openChain(full, {
    format: SCRATCH_FORMAT.name,
    access: 'write',
    describe: 'image',
    changesDisk: true,
    takesLocks: true,
  })
  try {
    requirePlain(opened.layers[0])
    const recovered = await unlockChain(opened, async () => [])
    const [overlay] = recovered.layers
    requireSameImage(overlay, image)
    compareNotes(overlay, chain, isNew)
    return overlay
  } catch (error) {
    closeChain(opened)
    throw error
  }
}

async function make(full: string, image: LayerSpec): Promise<void> {
  const sizeBytes = diskBytes(image)
  const { dir, base } = path.parse(image.path)
  const name = path.dirname(full) === dir ? base : image.path
  const files = new NewFiles(full)
  try {
    const backing = { name, format: image.format, sizeBytes }
    const request = { format: SCRATCH_FORMAT.name, sizeBytes, options: SHAPE, backing }
    const builder = await beginImage(targetOf(files), request)
    builder.finish()
    files.commit()
  } catch (error) {
    files.discard()
    throw error
  }
}

function requirePlain({ path, encryption, dataFile }: LayerSpec): void {
  if (!encryption && !dataFile) return
  const what = encryption ? 'it is encrypted' : 'it has an external data file'
  throw new ImageError('UNSUPPORTED', `${what}, which -o scratch does not write`, {
    path,
    hint: 'name a file that does not exist yet',
  })
}

function requireSameImage(overlay: LayerSpec, image: LayerSpec): void {
  const reference = referenceOf(overlay)
  const name = reference && path.resolve(path.dirname(overlay.path), reference.name)
  if (name !== undefined && isSameFile(name, image.fd)) return
  const what = `it stands on ${name === undefined ? 'no other image' : `"${reference?.name}"`}, not on ${image.path}`
  throw new ImageError('REFUSED', what, {
    path: overlay.path,
    hint: 'name another file, which may be new',
  })
}

function isSameFile(name: string, fd: number): boolean {
  const named = fs.statSync(name, { bigint: true, throwIfNoEntry: false })
  const open = fs.fstatSync(fd, { bigint: true })
  if (!named) return false
  return named.isBlockDevice() ? named.rdev === open.rdev : sameInode(named, open)
}

const sameInode = (a: fs.BigIntStats, b: fs.BigIntStats): boolean =>
  a.dev === b.dev && a.ino === b.ino

/** Throws ImageError if the overlay was written on another state of the image. */
function compareNotes(overlay: LayerSpec, chain: Chain, isNew: boolean): void {
  const { baseNote } = formatOf(overlay).writing ?? {}
  if (!baseNote) throw new TypeError(`${overlay.format} images have no room for a note`)
  const found = baseNote.read(overlay.spec, storeOf(overlay))
  const note = noteOf(chain)
  if (found?.equals(note)) return
  if (isNew || isEmpty(overlay)) {
    const size = BigInt64Array.of(BigInt(overlay.sizeBytes))
    baseNote.write(overlay.spec, OPENED_FILES.writable(overlay, size), note)
    return
  }
  const image = chain.layers[0].path
  const what = found
    ? `${image} has changed since this file was written`
    : `it was not made by -o scratch, so nothing says whether ${image} has changed since`
  throw new ImageError('REFUSED', what, {
    path: overlay.path,
    hint: found ? 'put the image back, or name a new file' : 'mount this file itself',
  })
}

/** Reports whether the overlay has nothing of the disk, so that it may stand on any state of the image. */
function isEmpty(overlay: LayerSpec): boolean {
  const { driver } = new ViewSet([overlay], SINGLE_THREAD_CACHES).layerView(0)
  for (let at = 0; at < driver.sizeBytes; ) {
    const extent = driver.lookup(at, driver.sizeBytes - at)
    if (extent.kind !== 'parent') return false
    at += extent.length
  }
  return true
}

/** Returns what tells one state of the image from another: sizes, times and heads of all files that its disk is made of. */
function noteOf({ layers }: Chain): Buffer {
  const hash = createHash('sha256')
  for (const file of filesFrom(layers, 0)) {
    const { sizeBytes, modified, hasName } = file
    // A device's time says nothing of its content.
    const time = hasName === false ? '' : `${modified.seconds}.${modified.nanoseconds}`
    const head = Buffer.alloc(Math.min(HEAD_BYTES, sizeBytes))
    storeOf(file).read(head, 0, head.length, 0)
    hash.update(`${sizeBytes} ${time} ${head.length}\n`).update(head)
  }
  return hash.digest()
}
