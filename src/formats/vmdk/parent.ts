/** What a VMDK image stands on: the disk that it was the state of when a snapshot was taken. */
import { ImageError, printable } from '../../errors.js'
import { NO_PARENT_CID } from './descriptor.js'
import type { VmdkSpec } from './image.js'

const NO_UUID = /^[0{}-]*$/

export interface ParentLink {
  /** As the descriptor has it: a path of the machine that made it, perhaps. */
  readonly hint: string
  /** What the parent's own CID has to be, 32 bits; NO_PARENT_CID where the descriptor does not say. */
  readonly cid: number
}

/** Throws ImageError where there is a parent that cannot be found by what the descriptor says. */
export function parentLink({ descriptor }: VmdkSpec, path: string): ParentLink | undefined {
  if (!descriptor) return undefined
  const { parentCid, parentHint, ddb } = descriptor
  // Only a disk that stands on another one has a hint, whatever its parentCID is.
  if (parentHint !== undefined && parentHint !== '') return { hint: parentHint, cid: parentCid }
  if (parentCid !== NO_PARENT_CID) {
    throw new ImageError('CORRUPT', 'it has a parent, which it does not name', {
      path,
      hint: 'give it the line parentFileNameHint="…" with the name of its parent',
    })
  }
  const uuid = ddb['uuid.parent'] ?? ''
  if (NO_UUID.test(uuid)) return undefined
  // Read alone it would have holes where the parent has data.
  const what = `it is a VirtualBox disk that only holds what differs from the disk ${printable(uuid)}`
  throw new ImageError('UNSUPPORTED', what, {
    path,
    hint: 'clone it to a whole disk with VBoxManage clonemedium',
  })
}

/** Where a parent may be, by its hint: as it says, or wherever its folder has gone since. */
export function parentNames(hint: string): string[] {
  const plain = hint.replaceAll('\\', '/')
  const parts = plain.split('/').filter(part => part !== '')
  const name = parts.at(-1) ?? hint
  const folder = parts.at(-2)
  const names = [hint, plain, name]
  if (folder !== undefined && folder !== '..' && folder !== '.') names.push(`../${folder}/${name}`)
  return [...new Set(names)]
}

/** The same for an extent: it lies beside its descriptor, whatever path another machine had. */
export function extentNames(name: string): string[] {
  const plain = name.replaceAll('\\', '/')
  return [...new Set([name, plain, plain.slice(plain.lastIndexOf('/') + 1)])]
}

/** Throws ImageError where the parent has changed since the child was made of it, or nobody can tell. */
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
