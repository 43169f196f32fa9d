/** Files that share blocks (ioctl_ficlonerange(2)). */
import fs from 'node:fs'
import { fileFlags, setFileFlags } from './file-flags.js'
import { cloneRange } from './libc.js'

/** The largest block of the file systems that have reflinks: only whole blocks are shared. */
export const CLONED_BLOCK_BYTES = 4096

/** xfs, btrfs and bcachefs. */
const WITH_REFLINKS = new Set([0x58465342, 0x9123683e, 0xca451a4e])

/** Reports whether the file system of `fd` may have reflinks. Only a try shows whether it has. */
export function hasReflinks(fd: number): boolean {
  try {
    return WITH_REFLINKS.has(fs.statfsSync(`/proc/self/fd/${fd}`).type)
  } catch {
    return false
  }
}

/**
 * Makes `length` bytes at `to` of `target` share their blocks with those at `at` of `source`. All are multiples of a block.
 * Returns false if that is impossible; then nothing has changed, or a part of it is shared.
 */
export function clone(
  target: number,
  source: number,
  at: number,
  length: number,
  to: number,
): boolean {
  return cloneRange(target, source, at, length, to) === 0
}

const FS_NOCOW_FL = 0x800000

/** Makes `target`, an empty file, write in place if `source` does (chattr +C): btrfs shares blocks only among files that agree. */
export function takeCopyOnWriteOf(target: number, source: number): void {
  const wanted = (fileFlags(source) ?? 0) & FS_NOCOW_FL
  const now = fileFlags(target)
  if (now === undefined || (now & FS_NOCOW_FL) === wanted) return
  setFileFlags(target, (now & ~FS_NOCOW_FL) | wanted)
}
