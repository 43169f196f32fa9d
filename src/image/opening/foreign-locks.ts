/** Handles locks of programs that do not know QEMU's locks. */
import { ImageError } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { Folder } from '../../io/folders.js'
import type { Access } from '../../io/named-file.js'
import { filesOf } from '../layer.js'

/** Throws ImageError if such a lock forbids `access`. Warns about the others. */
export function checkForeignLocks(
  top: LayerSpec,
  allowed: readonly Folder[],
  access: Access,
  warn: (text: string) => void,
): void {
  const { foreignLocks } = formatOf(top)
  if (!foreignLocks) return
  for (const { path: file } of filesOf(top)) {
    for (const { path: lock, isLive, owner, writes } of foreignLocks(file, allowed)) {
      if (!isLive) {
        warn(`${file}: ${lock} was left behind by ${owner}, and is no lock any more`)
      } else if (access === 'write') {
        throw new ImageError('REFUSED', `it is in use by ${owner}, says ${lock}`, {
          path: file,
          hint: 'end that, or read it with -o ro; where nobody uses it, delete the lock',
        })
      } else if (writes) {
        warn(
          `${file}: it is in use by ${owner}, says ${lock}; what is read may be out of date or torn`,
        )
      }
    }
  }
}
