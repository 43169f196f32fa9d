/** Disks in tar archives, mounted. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  everyPlace,
  HERE,
  mount,
  mountFolder,
  NO_LOG,
  noFuse,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'
import { sha256 } from './images.js'

const MIB = 2 ** 20
const skip = { ...needs('tar', 'qemu-img', 'qemu-io'), ...noFuse() }

async function makeOva(folder: string): Promise<string> {
  const qcow2 = join(folder, 'disk1.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', qcow2, '8M'])
  await run('qemu-io', ['-c', 'write -q -P 0x21 1M 2M', '-c', 'write -q -P 0x22 5M 70k', qcow2])
  await run('qemu-img', ['snapshot', '-c', 'one', qcow2])
  await run('qemu-io', ['-c', 'write -q -P 0x23 2M 1M', qcow2])
  writeFileSync(join(folder, 'machine.ovf'), '<Envelope/>')
  await run('qemu-img', ['convert', '-O', 'raw', qcow2, 'plain.img'], { cwd: folder })
  await run('qemu-img', ['convert', '-O', 'raw', '-l', 'one', qcow2, 'one.img'], { cwd: folder })
  await run('tar', ['-cf', 'x.ova', 'machine.ovf', 'disk1.qcow2'], { cwd: folder })
  await run('tar', ['-cf', 'y.tar', 'machine.ovf', 'plain.img', 'one.img'], { cwd: folder })
  return join(folder, 'x.ova')
}

t.test('the disk and its snapshots, with the name of the disk', skip, async t => {
  const folder = sharedFolder(t)
  const ova = await makeOva(folder)
  for (const place of await everyPlace(t)) {
    await t.test(place.name, async t => {
      const shown = await mount(t, ova, { place, args: ['-o', 'ro'] })
      const names = JSON.parse(await runIn(place, 'node', ['-e', LIST, shown.folder]))
      t.strictSame(names, ['disk1.raw', 'disk1@one.raw'])
      for (const [name, want] of Object.entries({
        'disk1.raw': 'plain.img',
        'disk1@one.raw': 'one.img',
      })) {
        const printed = await runIn(place, 'sha256sum', [shown.file(name)])
        t.equal(printed.split(' ')[0], await sha256(readFileSync(join(folder, want))), name)
      }
    })
  }
})

const LIST = 'console.log(JSON.stringify(require("fs").readdirSync(process.argv[1]).sort()))'

t.test(
  'a raw disk in an archive: its own bytes, also where files are passed through',
  skip,
  async t => {
    const folder = sharedFolder(t)
    await makeOva(folder)
    const image = join(folder, 'y.tar::plain.img')
    const { file } = await mount(t, image, { args: ['-o', 'ro,passthrough=on'] })
    const printed = await runIn(HERE, 'sha256sum', [file('plain.raw')])
    t.equal(printed.split(' ')[0], await sha256(readFileSync(join(folder, 'plain.img'))))
    t.equal(await runIn(HERE, 'stat', ['-c', '%s', file('plain.raw')]), `${8 * MIB}\n`)
  },
)

t.test(
  'it is never written: by default it is read, rw is refused, scratch copies work',
  skip,
  async t => {
    const folder = sharedFolder(t)
    const ova = await makeOva(folder)
    const before = readFileSync(ova)
    const refused = await vimgfs(HERE, ['mount', ...NO_LOG, '-o', 'rw', ova, mountFolder(t)])
    t.equal(refused.code, 1)
    t.match(
      refused.stderr,
      /^vimgfs: .*x\.ova::\/disk1\.qcow2: it lies in an archive, which is only read; .*\n$/,
    )
    const read = await mount(t, ova)
    t.match(read.printed.stderr, /only read, mounted read-only/)
    t.match(read.printed.stdout, /read-only/)
    const scratch = await mount(t, ova, {
      args: ['-o', 'scratch'],
      folder: mountFolder(t, HERE, 'b'),
    })
    const disk = scratch.file('disk1.raw')
    await runIn(HERE, 'dd', [
      'if=/dev/zero',
      `of=${disk}`,
      'bs=1M',
      'seek=2',
      'count=1',
      'conv=notrunc',
      'status=none',
    ])
    const printed = await runIn(HERE, 'od', ['-An', '-tx1', '-j3145727', '-N2', disk])
    t.equal(printed.trim(), '00 00', 'what was written is there')
    t.ok(readFileSync(ova).equals(before))
    const kept = await vimgfs(HERE, [
      'mount',
      ...NO_LOG,
      '-o',
      `scratch=${join(folder, 'k.qcow2')}`,
      ova,
      mountFolder(t, HERE, 'c'),
    ])
    t.match(kept.stderr, /no image can stand on it/)
    t.strictSame(
      readdirSync(folder).filter(name => name.startsWith('k.')),
      [],
    )
  },
)
