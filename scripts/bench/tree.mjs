/** Makes a file system on a loop device over a disk, and copies a tree of files in. */
import fs from 'node:fs'
import path from 'node:path'
import { MiB, randomStream } from './images.mjs'
import { rawOf } from './verify.mjs'
import { run } from './workplace.mjs'

const FILES_IN_FOLDER = 100
const SMALLEST = 256
const LARGEST = MiB

/** The commands as root would type them. A loop device that is detached while mounted goes away when it is unmounted. */
const COPY_IN = `set -e
file=$1 mnt=$2 tree=$3
loop=$(losetup --find --show "$file")
trap 'umount "$mnt" 2>/dev/null || true; losetup -d "$loop"' EXIT
mkfs.ext4 -q "$loop"
mount "$loop" "$mnt"
cp -a "$tree" "$mnt/tree"
umount "$mnt"
sync "$file"
`

/** Makes files of 256 bytes to 1 MiB, as many of 1 KiB as of 100 KiB: thousands for 500 MB. */
export function makeTree(place, bytes) {
  const dir = place.folder('tree')
  const random = randomStream('tree')
  for (let count = 0, left = bytes; left > 0; count++) {
    const folder = path.join(dir, String(Math.floor(count / FILES_IN_FOLDER)))
    if (count % FILES_IN_FOLDER === 0) fs.mkdirSync(folder)
    const share = random(4).readUInt32LE() / 2 ** 32
    const size = Math.min(left, Math.floor(SMALLEST * (LARGEST / SMALLEST) ** share))
    fs.writeFileSync(path.join(folder, String(count)), random(size))
    left -= size
  }
  return { dir, bytes }
}

/** Measures from losetup to the last sync; `value` is the tree's MB/s. */
export async function copyIn({ file, dir }, tree) {
  const mountPoint = path.join(dir, 'ext4')
  fs.mkdirSync(mountPoint)
  const begun = performance.now()
  await run('sh', ['-c', COPY_IN, 'sh', file, mountPoint, tree.dir])
  const ms = performance.now() - begun
  return { value: tree.bytes / ms / 1000, bytes: tree.bytes, ms }
}

/** Throws unless the file system in the image is sound and has the tree. */
export async function verifyTree(place, image, tree) {
  const seen = await rawOf(image)
  await run('e2fsck', ['-fn', seen])
  const mountPoint = place.folder('seen')
  await run('mount', ['-o', 'loop,ro', seen, mountPoint])
  try {
    await run('diff', ['-rq', tree.dir, path.join(mountPoint, 'tree')])
  } finally {
    await run('umount', [mountPoint])
  }
}
