/** Cuts off a file of a mounted image: the lost bytes must not come back as zeros. */
import { readdirSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { buildCow } from '../fixtures/cow-builder.js'
import {
  attemptIn,
  call,
  everyPlace,
  HERE,
  mount,
  noFuse,
  type Place,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MIB = 2 ** 20
const SIZE = 4 * MIB
const CLUSTER = 65536
const skip = { ...needs('qemu-img'), ...noFuse() }

interface Kind {
  readonly title: string
  /** Makes an image in `folder`; resolves to its file, and to the one that is cut off. */
  make(folder: string): Promise<{ image: string; cut: string }>
}

const made = (format: string, options: string[] = [], cutName?: string): Kind => ({
  title: [format, ...options].join(' '),
  make: async folder => {
    const image = join(folder, `disk.${format}`)
    const words = options.flatMap(option => ['-o', option.replace('FOLDER', folder)])
    await run('qemu-img', ['create', '-q', '-f', format, ...words, image, String(SIZE)])
    return { image, cut: join(folder, cutName ?? `disk.${format}`) }
  },
})

const KINDS: Kind[] = [
  made('qcow2'),
  made('qcow2', ['data_file=FOLDER/data.raw'], 'data.raw'),
  made('raw'),
  made('qcow'),
  made('vmdk'),
  made('vmdk', ['subformat=monolithicFlat'], 'disk-flat.vmdk'),
  made('vmdk', ['subformat=twoGbMaxExtentSparse'], 'disk-s001.vmdk'),
  {
    title: 'cow',
    make: async folder => {
      const image = join(folder, 'disk.cow')
      writeFileSync(
        image,
        buildCow({ layout: 'qemu-x86-64', sizeBytes: SIZE, sectors: new Map() }).bytes,
      )
      return { image, cut: image }
    },
  },
]

const dd = (place: Place, words: string[]) => attemptIn(place, 'dd', [...words, 'status=none'])

const isLong = process.env.VIMGFS_TEST_LONG === '1'
const FINDERS = ['read', 'write', 'clock'] as const

/** Mounts an image, writes to it, and cuts its file in half. */
async function cutDisk(t: Test, place: Place, kind: Kind) {
  const folder = sharedFolder(t)
  const { image, cut } = await kind.make(folder)
  await run('chmod', ['666', ...readdirSync(folder).map(name => join(folder, name))])
  const mounted = await mount(t, image, { place })
  const disk = mounted.file('disk.raw')
  const noise = join(folder, 'noise')
  await run('dd', ['if=/dev/urandom', `of=${noise}`, 'bs=1M', 'count=4', 'status=none'])
  const filled = await dd(place, [`if=${noise}`, `of=${disk}`, 'bs=64k', 'conv=notrunc,fsync'])
  t.equal(filled.code, 0, filled.stderr)
  const sizeBytes = Math.floor(statSync(cut).size / 2)
  truncateSync(cut, sizeBytes)
  /** Overwrites cluster `index` in place, and syncs it. */
  const write = (index: number) =>
    dd(place, [
      `if=${noise}`,
      `of=${disk}`,
      'bs=64k',
      'count=1',
      `seek=${index}`,
      'conv=notrunc,fsync',
    ])
  /** Reads cluster `index` past the page cache. */
  const read = (index: number) =>
    dd(place, [`if=${disk}`, 'of=/dev/null', 'bs=64k', 'count=1', `skip=${index}`, 'iflag=direct'])
  return { mounted, cut, sizeBytes, write, read }
}

t.test('writing ends, and umount reports it', skip, async t => {
  // Try every way to notice it with one kind of image, and one way with each other kind.
  let turn = 0
  for (const place of await everyPlace(t)) {
    for (const [index, kind] of (place === HERE ? KINDS : KINDS.slice(0, 1)).entries()) {
      const isWhole = isLong || (index === 0 && place === HERE)
      for (const finder of isWhole ? FINDERS : [FINDERS[turn++ % FINDERS.length]!]) {
        await t.test(`${kind.title}, found by a ${finder}, ${place.name}`, async t => {
          const { mounted, cut, sizeBytes, write, read } = await cutDisk(t, place, kind)
          const last = SIZE / CLUSTER - 1
          if (finder === 'read') t.match((await read(last)).stderr, /Input\/output error/)
          if (finder !== 'clock') {
            // Writing the last cluster would restore the file's size; writing another lost one, a part of it.
            for (const index of [last, last - 3, 0, last]) {
              t.match((await write(index)).stderr, /Input\/output error/, `cluster ${index}`)
            }
          }
          t.match((await read(last - 4)).stderr, /Input\/output error/, 'lost bytes cannot be read')
          t.equal(statSync(cut).size, sizeBytes, 'the file is as it was left')
          const { code, stderr } = await vimgfs(place, ['umount', mounted.folder])
          t.equal(code, 1)
          t.match(stderr, /has been cut off while it was mounted/)
          t.equal(stderr.trim().split('\n').length, 1, 'one line')
          t.match(mounted.log(), /has been cut off while/)
          t.equal(statSync(cut).size, sizeBytes, 'nothing was written at the end either')
        })
      }
    }
  }
})

t.test('the lost part does not count as a hole', skip, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.raw')
  writeFileSync(image, Buffer.alloc(SIZE, 1))
  // Other mounts that only read look for changes within a second, and then no read succeeds.
  const { file } = await mount(t, image, { args: ['-o', 'ro,force-share'] })
  truncateSync(image, MIB)
  t.same(await call(HERE, 'data', file('disk.raw')), [
    [0, MIB],
    [MIB, SIZE],
  ])
  const copy = join(folder, 'copy')
  const { code } = await attemptIn(HERE, 'cp', ['--sparse=always', file('disk.raw'), copy])
  t.equal(code, 1, 'a copy fails')
  await runIn(HERE, 'rm', ['-f', copy])
})
