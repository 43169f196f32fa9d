/**
 * The entry of a mount in libmount's own table (/run/mount/utab). It makes umount(8) leave the work to `umount.vimgfs`, which
 * waits until all that was written is in the image. Only root may write it, and nothing depends on it.
 */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { FS_TYPE, type MountInfo, mountOn } from '../io/mountinfo.js'

/** Where umount(8) looks for the program that the name `vimgfs` stands for. */
const HELPERS = ['/sbin/umount.vimgfs', '/sbin/umount.fuse.vimgfs']
const TABLE = '/run/mount/utab'
const TIMEOUT_MS = 10_000

/** Writes the entry of the mount on `mountpoint`, if this user may and umount(8) would find the program. Never throws. */
export function noteHelper(mountpoint: string): void {
  if (process.geteuid?.() !== 0 || !HELPERS.some(name => fs.existsSync(name))) return
  const mount = mountOn(mountpoint)
  // mount -f writes the table and mounts nothing; -i keeps it from running a helper.
  if (mount) runQuietly('mount', ['-t', FS_TYPE, '-o', 'uhelper=vimgfs', '--', mount.source], mount)
}

/** Removes the entry of a mount that is no longer there, if it has one. Never throws. */
export function forgetHelper(mount: MountInfo): void {
  if (process.geteuid?.() !== 0 || !hasEntry(mount)) return
  runQuietly('umount', ['-t', FS_TYPE, '--'], mount)
}

function hasEntry({ mountpoint }: MountInfo): boolean {
  try {
    const lines = fs.readFileSync(TABLE, 'utf8').split('\n')
    return lines.some(line => line.includes('UHELPER') || line.includes(`TARGET=${mountpoint} `))
  } catch {
    return false
  }
}

function runQuietly(program: string, args: readonly string[], { mountpoint }: MountInfo): void {
  spawnSync(program, ['--internal-only', '--fake', '--no-canonicalize', ...args, mountpoint], {
    cwd: '/',
    stdio: 'ignore',
    timeout: TIMEOUT_MS,
  })
}
