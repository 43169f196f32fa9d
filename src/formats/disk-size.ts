/** The largest disk that can be shown. */
import { ImageError } from '../errors.js'

/** Reports whether a disk has more bytes than a number represents exactly: 8 PiB or more. */
export const isTooLarge = (sizeBytes: number | bigint): boolean =>
  sizeBytes > Number.MAX_SAFE_INTEGER

/** The ways out. QEMU resizes qcow2 and raw images alone, and does not read cow images any more. */
export const SHRINK = 'read it with qemu-nbd, or shrink a copy with qemu-img resize --shrink'
export const READ_BY_QEMU = 'read it with qemu-nbd, or copy what you need from it to a smaller disk'

/** Returns the error for such a disk or file. The image is sound. */
export function tooLarge(
  path: string,
  sizeBytes: number | bigint,
  { what = 'disk', hint = READ_BY_QEMU }: { what?: 'disk' | 'file'; hint?: string } = {},
): ImageError {
  const bytes = typeof sizeBytes === 'bigint' ? String(sizeBytes) : `about ${sizeBytes}`
  return new ImageError(
    'UNSUPPORTED',
    `the ${what} is too large: it has ${bytes} bytes, and vimgfs shows less than 8 PiB (2^53 bytes)`,
    { path, hint },
  )
}
