/** Zeros in pieces smaller than a cluster: they take no space where the disk reads as zeros, and are written elsewhere. */
import { chmodSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { buildCow } from '../fixtures/cow-builder.js'
import { openedImage, readAll } from '../support/image.js'
import {
  HERE,
  mount,
  noFuse,
  noLibfuse,
  overLibfuse,
  runIn,
  sharedFolder,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'

const MIB = 2 ** 20
const isLong = process.env.VIMGFS_TEST_LONG === '1'
const SIZE = 4 * MIB
/** Tables and headers of so small a disk take less, and clusters for a quarter of it more. */
const TABLE_BYTES = MIB
const skip = { ...needs('qemu-img', 'qemu-io'), ...noFuse() }

interface Kind {
  readonly title: string
  readonly format: string
  readonly options?: readonly string[]
  /** Commands of qemu-io. */
  readonly before?: readonly string[]
  /** MiB of its backing file, which is a hole but for its first 64 KiB. */
  readonly below?: number
}

const KINDS: Kind[] = [
  { title: 'qcow2', format: 'qcow2' },
  { title: 'qcow2 of version 2', format: 'qcow2', options: ['compat=0.10'] },
  { title: 'qcow2 with clusters of 512 KiB', format: 'qcow2', options: ['cluster_size=512k'] },
  { title: 'qcow2 with subclusters', format: 'qcow2', options: ['extended_l2=on'] },
  { title: 'qcow2, zero clusters', format: 'qcow2', before: ['write -q -z 0 4M'] },
  { title: 'qcow2 with a data file', format: 'qcow2', options: ['data_file=FOLDER/data.raw'] },
  { title: 'qcow2 on a short layer', format: 'qcow2', below: 1 },
  { title: 'qcow2 on a layer of holes', format: 'qcow2', below: 4 },
  { title: 'vmdk', format: 'vmdk' },
  { title: 'vmdk on a layer of holes', format: 'vmdk', below: 4 },
  { title: 'qcow', format: 'qcow' },
  { title: 'qcow on a layer of holes', format: 'qcow', below: 4 },
  { title: 'cow', format: 'cow' },
]

async function make(folder: string, kind: Kind): Promise<string> {
  const { format, options = [], before = [], below } = kind
  const image = join(folder, `disk.${format}`)
  if (format === 'cow') {
    writeFileSync(image, buildCow({ layout: 'qemu-x86-64', sizeBytes: SIZE }).bytes)
    await run('fallocate', ['--dig-holes', image])
    return image
  }
  const words = options.flatMap(option => ['-o', option.replace('FOLDER', folder)])
  if (below !== undefined) {
    const base = join(folder, 'base')
    const baseFormat = format === 'vmdk' ? 'vmdk' : 'raw'
    await run('qemu-img', ['create', '-q', '-f', baseFormat, base, `${below}M`])
    await run('qemu-io', ['-f', baseFormat, '-c', 'write -q -P 7 0 64k', base])
    words.push('-b', base, '-F', baseFormat)
  }
  await run('qemu-img', ['create', '-q', '-f', format, ...words, image, String(SIZE)])
  for (const command of before) await run('qemu-io', ['-f', format, '-c', command, image])
  return image
}

const takenBytes = (folder: string, names: readonly string[]): number =>
  names.reduce((sum, name) => sum + statSync(join(folder, name)).blocks * 512, 0)

/** Bytes of a write: of whole sectors, and not. Kinds take turns, since the sizes take the same way in each of them. */
function sizesOf(kind: Kind): number[] {
  const sizes = kind.format === 'cow' ? [512, 7000] : [4096, 7000]
  const index = KINDS.indexOf(kind)
  return isLong || index === 0 ? sizes : [sizes[index % 2] as number]
}

for (const kind of KINDS) {
  t.test(kind.title, skip, async t => {
    const places = [HERE, ...(noLibfuse().skip || kind !== KINDS[0] ? [] : [overLibfuse(HERE)])]
    for (const place of places) {
      for (const bs of sizesOf(kind)) {
        await t.test(`${place.name}, ${bs} bytes at a time`, async t => {
          const folder = sharedFolder(t)
          const image = await make(folder, kind)
          chmodSync(image, 0o666)
          const names = [
            `disk.${kind.format}`,
            ...(kind.options?.[0]?.includes('data.raw') ? ['data.raw'] : []),
          ]
          const { file, folder: mounted } = await mount(t, image, { place })
          const disk = file('disk.raw')
          const dd = (words: string[]) =>
            runIn(place, 'dd', [`of=${disk}`, 'conv=notrunc', 'status=none', ...words])
          await dd(['if=/dev/zero', `bs=${bs}`, `count=${Math.floor(SIZE / bs)}`])
          t.notOk(
            readFileSync(disk).some(byte => byte !== 0),
            'the data below are zeros now, too',
          )
          // Zeros over data are written, whether their cluster is the disk's own or not.
          const noise = join(folder, 'noise')
          await run('dd', ['if=/dev/urandom', `of=${noise}`, 'bs=64k', 'count=1', 'status=none'])
          await dd([`if=${noise}`, 'bs=64k', 'seek=16'])
          await dd(['if=/dev/zero', `bs=${bs}`, 'count=3', `seek=${Math.ceil(MIB / bs) + 1}`])
          const umount = await vimgfs(place, ['umount', mounted])
          t.equal(umount.code, 0, umount.stderr)
          t.ok(
            takenBytes(folder, names) <
              TABLE_BYTES + 2 * MIB * Number(kind.title.includes('512 KiB')),
          )
          const expected = Buffer.alloc(SIZE)
          readFileSync(noise).copy(expected, MIB)
          expected.fill(0, (Math.ceil(MIB / bs) + 1) * bs, (Math.ceil(MIB / bs) + 4) * bs)
          const again = openedImage(t, image)
          t.ok(readAll(again.view()).equals(expected), 'the bytes are right')
          if (kind.format !== 'cow') {
            const raw = join(folder, 'raw')
            await run('qemu-img', ['convert', '-U', '-f', kind.format, '-O', 'raw', image, raw])
            t.ok(readFileSync(raw).equals(expected), 'for QEMU, too')
          }
        })
      }
    }
  })
}

t.test('room that was taken beforehand stays taken', skip, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  const full = ['-o', 'preallocation=full']
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', ...full, image, String(SIZE)])
  const before = statSync(image).blocks
  const { file, folder: mounted } = await mount(t, image)
  const words = ['if=/dev/zero', `of=${file('disk.raw')}`, 'bs=4k', 'conv=notrunc', 'status=none']
  await runIn(HERE, 'dd', [...words, `count=${SIZE / 4096}`])
  t.equal((await vimgfs(HERE, ['umount', mounted])).code, 0)
  t.ok(statSync(image).blocks >= before)
})

t.test('single bytes take room, as posix_fallocate writes them', skip, async t => {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(SIZE)])
  const { file, folder: mounted } = await mount(t, image)
  const words = ['if=/dev/zero', `of=${file('disk.raw')}`, 'bs=1', 'count=1', 'conv=notrunc']
  for (let cluster = 0; cluster < 16; cluster++) {
    await runIn(HERE, 'dd', [...words, `seek=${cluster * 65536 + 4095}`, 'status=none'])
  }
  t.equal((await vimgfs(HERE, ['umount', mounted])).code, 0)
  const map = JSON.parse(await run('qemu-img', ['map', '--output=json', image]))
  const taken = map.filter(({ data }: { data: boolean }) => data)
  t.equal(taken.at(-1).start + taken.at(-1).length, MIB, JSON.stringify(map))
  t.equal(taken[0].start, 0)
})
