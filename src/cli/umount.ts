/** `vimgfs umount`: unmounts mount points and images, and returns when their servers have ended. */
import { exitCodeOf, isExpected, MountError, oneLine, UsageError } from '../errors.js'
import { findMount, FS_TYPE, listMounts, type MountInfo, ownerOf } from '../io/mountinfo.js'
import { parseWords } from './arguments.js'
import { OPTIONS } from './help/umount.js'
import { complain } from './output.js'
import { unmountOne } from './unmount-one.js'
import { forgetHelper } from './utab.js'

/** @param isUnnoted whether umount(8) has called, which looks after its table itself */
export async function run(args: string[], isUnnoted = false): Promise<number> {
  const words = { required: [], hasMore: true }
  const { values, positionals } = parseWords(args, OPTIONS, 'umount', words)
  const { lazy: isLazy = false, all = false, 'all-users': allUsers = false } = values
  const takesAll = all || allUsers
  if (takesAll && positionals.length > 0) {
    throw new UsageError('names and --all exclude each other; leave out one of them')
  }
  if (!takesAll && positionals.length === 0) {
    throw new UsageError('MOUNTPOINT is missing; vimgfs help umount shows how to call it')
  }
  if (allUsers && process.geteuid?.() !== 0) throw new UsageError('--all-users is for root only')
  const work: (() => Promise<void>)[] =
    positionals.length > 0
      ? positionals.map(name => () => unmountNamed(name, isLazy, isUnnoted))
      : allMounts(allUsers).map(mount => () => unmount(mount, isLazy, isUnnoted))
  return inOrder(work)
}

/** Does all of `work`, also after a failure. Throws the only failure; several are printed. Returns the highest exit code. */
async function inOrder(work: readonly (() => Promise<void>)[]): Promise<number> {
  if (work.length === 1) {
    await work[0]?.()
    return 0
  }
  let code = 0
  for (const act of work) {
    try {
      await act()
    } catch (error) {
      if (!isExpected(error)) throw error
      complain(`vimgfs: ${oneLine(error)}\n`)
      code = Math.max(code, exitCodeOf(error))
    }
  }
  return code
}

/** Returns the mounts of this user, or of all, the last one first: it may stand on an earlier one. */
function allMounts(ofAllUsers: boolean): MountInfo[] {
  const user = process.geteuid?.()
  return listMounts()
    .filter(mount => mount.type === FS_TYPE && (ofAllUsers || ownerOf(mount) === user))
    .reverse()
}

async function unmountNamed(name: string, isLazy: boolean, isUnnoted: boolean): Promise<void> {
  const mount = findMount(name)
  if (mount && mount.type !== FS_TYPE) {
    throw new MountError(
      `${name}: ${mount.source} (${mount.type}) is mounted there, not an image by vimgfs; use umount`,
    )
  }
  if (mount) return unmount(mount, isLazy, isUnnoted)
  const { mountsOfImage } = await import('../control/find.js')
  const mounts = await mountsOfImage(name)
  if (mounts === undefined) throw new MountError(`${name}: nothing is mounted there`)
  if (mounts.length === 0) throw new MountError(`${name}: vimgfs has not mounted this image here`)
  for (const one of mounts) await unmount(one, isLazy, isUnnoted)
}

async function unmount(mount: MountInfo, isLazy: boolean, isUnnoted: boolean): Promise<void> {
  try {
    await unmountOne(mount, isLazy)
  } finally {
    if (!isUnnoted) forgetHelper(mount)
  }
}
