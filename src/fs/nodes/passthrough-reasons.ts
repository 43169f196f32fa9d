/** Why the server serves a file, for status.json, as numbers that fit into shared memory. */
import type { LayoutObstacle } from '../../image/layout/lay-out.js'

/** The code of a reason is its place here, below 0. */
const REASONS = {
  notFlat: 'its bytes are not those of one file, range for range',
  otherSize: 'its file is longer or shorter than the disk',
  device: 'it lies on a block device',
  fileSystem: 'its file does not lie on ext4, xfs, btrfs or tmpfs',
  unseen: 'what programs write through maps would not be seen, and the image notes each write',
  guessed:
    'its format was guessed as raw, which a write through a map might change; mount it with --format raw',
  grows: 'it grows with what is written (growable)',
  watched:
    'another program could change its file unnoticed; -o passthrough=on allows that, and an immutable file (chattr +i) needs no option',
  notAllowed: 'the kernel allows that to root of the first user namespace only',
  refused: 'the kernel refuses its file',
  many: 'the mount has too many files',
  unreadable: 'its tables cannot be read',
  packed:
    'parts of it are compressed, encrypted or in an archive, more than -o materialize=SIZE allows to be written out',
  unaligned:
    'parts of it do not lie at blocks of the file system, more than -o materialize=SIZE allows to be written out',
  pieces: 'it has too many pieces to be laid out in a file of its own',
  slow: 'laying it out in a file of its own takes too long',
  lost: 'its file has been cut off',
  otherFiles:
    'its files cannot share blocks: they lie on several file systems, or on one without reflinks',
  noFile: 'no file can be made in the folder of its file',
  full: 'its file system has no room for a file that shares its blocks',
  changed: 'another program has changed its file',
} as const satisfies Record<LayoutObstacle, string> & Record<string, string>

export type Reason = keyof typeof REASONS
const ORDER = Object.keys(REASONS) as Reason[]
export const codeOf = (reason: Reason): number => -1 - ORDER.indexOf(reason)
export const because = (reason: Reason): { readonly reason: number } => ({ reason: codeOf(reason) })
export const reasonOf = (code: number): string =>
  REASONS[ORDER[-1 - code] as Reason] ?? REASONS.changed
