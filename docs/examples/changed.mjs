// Prints how many bytes of an image's disk differ from each of its snapshots.
// Usage: node changed.mjs IMAGE
import { openImage } from 'vimgfs'

const STEP_BYTES = 64 * 1024

const image = await openImage(process.argv[2])
try {
  const { disk, snapshots } = image
  console.log(`${image.format}, ${disk.sizeBytes} bytes`)
  for (const snapshot of snapshots.filter(({ kind }) => kind === 'snapshot')) {
    console.log(
      `${snapshot.attributes['snapshot-name']}: ${changedBytes(disk, snapshot)} bytes differ`,
    )
  }
} finally {
  image.close()
}

function changedBytes(disk, snapshot) {
  const now = Buffer.alloc(STEP_BYTES)
  const then = Buffer.alloc(STEP_BYTES)
  const end = Math.min(disk.sizeBytes, snapshot.sizeBytes)
  let changed = 0
  for (let offset = 0; offset < end; offset += STEP_BYTES) {
    const length = Math.min(STEP_BYTES, end - offset)
    disk.read(now.subarray(0, length), offset)
    snapshot.read(then.subarray(0, length), offset)
    for (let i = 0; i < length; i++) if (now[i] !== then[i]) changed++
  }
  return changed
}
