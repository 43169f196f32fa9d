/** The place of a LUKS header within an image. */
import type { LuksArea } from '../crypto/luks1.js'
import { MAX_LUKS_HEADER_BYTES } from './limits.js'

/**
 * Reports whether a LUKS header can be where the image says.
 * @param unitBytes the unit within which the file may end, in bytes
 */
export function isPossibleLuks(
  { offset, length }: LuksArea,
  fileBytes: number,
  unitBytes: number,
): boolean {
  const end = Math.ceil(fileBytes / unitBytes) * unitBytes
  return length <= MAX_LUKS_HEADER_BYTES && offset + length <= end
}
