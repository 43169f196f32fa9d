/** The parent of a VMDK image: the disk whose state a snapshot has frozen. */
import { ImageError, printable } from '../../errors.js'
import { NO_PARENT_CID } from './descriptor.js'
import type { VmdkSpec } from './open.js'

const NO_UUID = /^[0{}-]*$/

export interface ParentLink {
  /** The hint of the descriptor, perhaps a path of the machine that made it. */
  readonly hint: string
  /** The CID that the parent must have, 32 bits; NO_PARENT_CID if the descriptor does not say. */
  readonly cid: number
}

/** Returns the link to the parent, if there is one. Throws ImageError if the descriptor does not say where it is. */
export function parentLink({ descriptor }: VmdkSpec, path: string): ParentLink | undefined {
  if (!descriptor) return undefined
  const { parentCid, parentHint, ddb } = descriptor
  // Only a child has a hint, whatever its parentCID is.
  if (parentHint !== undefined && parentHint !== '') return { hint: parentHint, cid: parentCid }
  if (parentCid !== NO_PARENT_CID) {
    throw new ImageError('CORRUPT', 'it has a parent, which it does not name', {
      path,
      hint: 'give it the line parentFileNameHint="…" with the name of its parent',
    })
  }
  const uuid = ddb['uuid.parent'] ?? ''
  if (NO_UUID.test(uuid)) return undefined
  // Alone, it would read as zeros where the parent has data.
  const what = `it is a VirtualBox disk that only holds what differs from the disk ${printable(uuid)}`
  throw new ImageError('UNSUPPORTED', what, {
    path,
    hint: 'clone it to a whole disk with VBoxManage clonemedium',
  })
}

/** Returns the possible names of a parent: its hint, and the same file name beside the image. */
export function parentNames(hint: string): string[] {
  const plain = hint.replaceAll('\\', '/')
  const parts = plain.split('/').filter(part => part !== '')
  const name = parts.at(-1) ?? hint
  const folder = parts.at(-2)
  const names = [hint, plain, name]
  if (folder !== undefined && folder !== '..' && folder !== '.') names.push(`../${folder}/${name}`)
  return [...new Set(names)]
}

/** Returns the same for an extent, which lies beside its descriptor, whatever path another machine used. */
export function extentNames(name: string): string[] {
  const plain = name.replaceAll('\\', '/')
  return [...new Set([name, plain, plain.slice(plain.lastIndexOf('/') + 1)])]
}

/** Throws ImageError if the parent has changed since the child was made, or if that is unknown. */
export function checkCid(
  link: ParentLink,
  parent: VmdkSpec,
  path: string,
  parentPath: string,
): void {
  const cid = parent.descriptor?.cid
  if (link.cid === NO_PARENT_CID) {
    const what = `it names a parent, ${printable(parentPath)}, and has no valid parentCID`
    const hint =
      'read on all the same with --ignore-cid, or give it a parentCID line with the CID of its parent'
    throw new ImageError('CORRUPT', what, { path, hint })
  }
  if (cid === link.cid) return
  const hex = (value: number) => value.toString(16).padStart(8, '0')
  const found = cid === undefined ? 'which has none' : `not ${hex(cid)}`
  throw new ImageError(
    'CORRUPT',
    `its parent ${printable(parentPath)} has been changed since: it should have the CID ${hex(link.cid)}, ${found}`,
    { path, hint: 'restore the parent, or read on all the same with --ignore-cid' },
  )
}
