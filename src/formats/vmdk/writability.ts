/** Decides which VMDK images can be written, before anything is written. */
import { printable } from '../../errors.js'
import { WriteProtected } from '../../io/named-file.js'
import type { Store } from '../../io/store.js'
import type { VmdkExtent, VmdkSpec } from './open.js'
import { extentKind } from './parts.js'
import { saysCompressed } from './sparse-header.js'
import { SECTOR_BYTES } from '../../sector.js'

export interface WriteOptions {
  /** Whether the image gives up its change tracking: then programs that rely on it make a full backup next. */
  readonly dropsChangeTracking: boolean
  /** Whether the image lies on a block device. */
  readonly isDevice: boolean
}

const SESPARSE = 'seSparse extents are read only'
const COMPRESSED = 'it is stream-optimized: what is compressed cannot be written in place'
const READ_ONLY = 'mount it with -o ro'
const CONVERT = 'mount it with -o ro, or convert it with qemu-img convert'

/** Throws WriteProtected if the image in the file at `path` can only be read. */
export function requireWritable(spec: VmdkSpec, path: string, options: WriteOptions): void {
  const refuse = (at: string, what: string, hint = READ_ONLY): never => {
    throw new WriteProtected(at, what, hint)
  }
  if (options.isDevice) refuse(path, 'a vmdk on a block device has nowhere to grow', CONVERT)
  // Without a descriptor there is no CID to update, so children could not detect the change.
  if (!spec.descriptor) {
    const hint = 'mount the disk that it is a part of, or this with -o ro'
    refuse(path, 'an extent without its descriptor is not written', hint)
  }
  for (const extent of spec.extents) {
    const problem = problemOf(extent)
    if (problem) refuse(extent.file?.path ?? path, problem.what, problem.hint)
  }
  if (!spec.extents.some(({ isWritable }) => isWritable)) {
    refuse(path, 'none of its extents may be written')
  }
  const shared = sharedBytes(spec)
  if (shared) refuse(shared, 'parts of the disk share bytes of this file')
  if (spec.extents.some(({ file, layout }) => layout.kind === 'flat' && file?.path === path)) {
    refuse(path, 'the descriptor lies within the disk that it describes')
  }
  const tracking = spec.descriptor?.changeTrackPath
  if (tracking !== undefined && !options.dropsChangeTracking) {
    const what = `its changes are tracked in "${printable(tracking)}", which is not kept up`
    refuse(path, what, 'give its tracking up with --drop-change-tracking, or mount it with -o ro')
  }
}

/**
 * Throws WriteProtected if the image's first bytes show a kind of extent that is never written. Call it before other programs
 * are locked out. Also throws SystemError. It ignores damage, which the reader reports.
 */
export function requireWritableKind(store: Store): void {
  const head = Buffer.alloc(SECTOR_BYTES)
  const isWhole = store.read(head, 0, head.length, 0) === head.length
  const kind = extentKind(head)
  if (kind === 'sesparse') throw new WriteProtected(store.path, SESPARSE, CONVERT)
  if (kind === 'sparse' && isWhole && saysCompressed(head)) {
    throw new WriteProtected(store.path, COMPRESSED, CONVERT)
  }
}

function problemOf({ isWritable, file, layout, sizeBytes }: VmdkExtent) {
  if (!isWritable || !file) return undefined
  if (layout.kind === 'sesparse') return { what: SESPARSE, hint: CONVERT }
  if (layout.kind === 'flat') {
    if (layout.startBytes + sizeBytes <= file.sizeBytes) return undefined
    return { what: 'its end is missing', hint: 'restore it from a copy, or mount it with -o ro' }
  }
  if (layout.kind !== 'sparse') return undefined
  if (layout.header.isCompressed) return { what: COMPRESSED, hint: CONVERT }
  if (!layout.header.lacksDirectory) return undefined
  const what = 'one of its two grain directories is damaged'
  return { what, hint: 'mount it with -o ro, and copy the disk to a new image' }
}

/** Returns the path of a file whose bytes are at two places of the disk, if there is one. */
function sharedBytes({ extents }: VmdkSpec): string | undefined {
  const used = extents.flatMap(({ file, layout, sizeBytes }) => {
    if (!file || sizeBytes === 0) return []
    if (layout.kind !== 'flat') return [{ file, start: 0, end: Number.POSITIVE_INFINITY }]
    return [{ file, start: layout.startBytes, end: layout.startBytes + sizeBytes }]
  })
  used.sort((a, b) => a.file.fd - b.file.fd || a.start - b.start)
  const again = used.find((part, i) => {
    const before = used[i - 1]
    return before !== undefined && before.file.fd === part.file.fd && before.end > part.start
  })
  return again?.file.path
}
