/** Writes that are refused because a raw image was only guessed to be raw, by both transports. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptIn,
  HERE,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'

const SIZE = 2 ** 20
const QCOW2 = '\\121\\106\\111\\373\\0\\0\\0\\003'

const PLACES: readonly { place: Place; skip: { skip?: string } }[] = [
  { place: HERE, skip: noFuse() },
  { place: overLibfuse(HERE), skip: noLibfuse() },
]

function rawImage(t: Test): string {
  const image = join(sharedFolder(t), 'disk.img')
  const content = Buffer.alloc(SIZE, 'x', 'latin1')
  content.fill(0, 0, 510)
  content.writeUInt16LE(0xaa55, 510)
  fs.writeFileSync(image, content)
  return image
}

for (const { place, skip } of PLACES) {
  t.test(place.name, skip, async t => {
    const image = rawImage(t)
    const before = fs.readFileSync(image)
    const mounted = await mount(t, image, { place })
    const disk = mounted.file('disk.raw')
    const sh = (script: string) => attemptIn(place, 'sh', ['-c', script, 'sh', disk])
    const refused = [
      `printf '${QCOW2}' | dd of="$1" conv=notrunc`,
      `printf '${QCOW2}' | dd of="$1" conv=notrunc oflag=direct ibs=8 obs=512 conv=sync,notrunc`,
      `{ printf '${QCOW2}'; head -c 300000 /dev/urandom; } | dd of="$1" conv=notrunc bs=1M iflag=fullblock`,
      `printf QED | dd of="$1" conv=notrunc && printf '\\0' | dd of="$1" conv=notrunc bs=1 seek=3 && dd if=/dev/zero of="$1" conv=notrunc bs=1 count=1 seek=3`,
    ]
    for (const script of refused.slice(0, 3)) {
      const { code, stderr } = await sh(script)
      t.not(code, 0, script)
      t.match(stderr, /Operation not permitted/)
    }
    t.ok(fs.readFileSync(image).equals(before), 'nothing is written')
    t.equal((await sh(refused[3] as string)).code, 1, 'QED and a zero')
    t.equal((await sh('printf boot | dd of="$1" conv=notrunc')).code, 0, 'other bytes are written')
    t.equal(fs.readFileSync(image).toString('latin1', 0, 4), 'boot')
    const lines = mounted
      .log()
      .split('\n')
      .filter(line => line.includes('--format raw'))
    t.equal(lines.length, 1, 'the log says it once')
    await vimgfs(place, ['umount', mounted.folder])

    const stated = await mount(t, image, { place, args: ['--format', 'raw'] })
    const script = `printf '${QCOW2}' | dd of="$1" conv=notrunc`
    const { code } = await attemptIn(place, 'sh', ['-c', script, 'sh', stated.file('disk.raw')])
    t.equal(code, 0, 'with --format raw')
  })
}
