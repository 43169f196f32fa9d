/**
 * fio writes, reads back and checks its sums: several jobs at once, buffered and direct, with trims;
 * and checks them once more when the image has been mounted anew.
 */
import { copyFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import t, { type Test } from 'tap'
import { asQemuNames, type EncryptedImage, makeEncrypted } from '../peers/encrypted.js'
import { loop } from '../support/loop.js'
import {
  HERE,
  mount,
  mountFolder,
  noFuse,
  noLibfuse,
  overLibfuse,
  type Place,
  runIn,
  sharedFolder,
} from '../support/mount.js'
import { needs, needsRoot, run } from '../support/run.js'
import { convert, isSameDisk, isSound, isSoundForUs, snapshot, unmount } from './disks.js'
import { isLong, sized } from './size.js'

const MIB = 2 ** 20
/** Of each job; the jobs lie side by side. */
const JOB_MIB = sized(10, 512)
const JOBS = 4
const DISK_BYTES = JOBS * JOB_MIB * MIB
const skip = { ...noFuse(), ...needs('fio', 'qemu-img', 'qemu-io') }

interface Case {
  readonly name: string
  readonly args: readonly string[]
  readonly jobs?: number
  /** The jobs take turns by pieces of as many bytes; else each has a part of the disk to itself. */
  readonly stripe?: number
}

const CASES: readonly Case[] = [
  {
    name: 'random, buffered',
    args: ['--rw=randwrite', '--bsrange=512-96k', '--ioengine=psync', '--fsync=200'],
  },
  {
    name: 'random, direct, queues of 8, read again soon',
    args: [
      ...['--rw=randwrite', '--bs=4k', '--verify_backlog=128'],
      ...['--ioengine=libaio', '--iodepth=8', '--direct=1'],
    ],
  },
  {
    name: 'sequential, buffered',
    args: ['--rw=write', '--bs=1M', '--verify_interval=4k', '--ioengine=psync'],
  },
  {
    name: 'sequential, direct, queues of 4',
    args: [
      ...['--rw=write', '--bs=256k', '--verify_interval=4k'],
      ...['--ioengine=libaio', '--iodepth=4', '--direct=1'],
    ],
  },
  {
    name: 'in the same clusters, buffered',
    args: ['--rw=write:12k', '--bs=4k', '--ioengine=psync'],
    stripe: 4096,
  },
  {
    name: 'in the same clusters, direct, queues of 4',
    args: ['--rw=write:12k', '--bs=4k', '--ioengine=libaio', '--iodepth=4', '--direct=1'],
    stripe: 4096,
  },
  {
    name: 'random, mapped',
    args: ['--rw=randwrite', '--bs=4k', '--ioengine=mmap'],
    // fio mixes up the maps that jobs have of one file.
    jobs: 1,
  },
]

/** The same case gives the same writes. */
function fio(
  file: string,
  { args, jobs = JOBS, stripe }: Case,
  ...more: string[]
): Promise<string> {
  const ofAll = ['--group_reporting', '--thread', '--fallocate=none', '--allow_file_create=0']
  // It would leave files of its state in the working folder.
  ofAll.push('--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--randseed=1')
  const ofEach = Array.from({ length: jobs }, (_, index) => {
    const place =
      stripe === undefined
        ? [`--offset=${index * JOB_MIB}M`, `--size=${JOB_MIB}M`]
        : // Its last stripe ends before the disk does.
          [`--offset=${index * stripe}`, `--size=${DISK_BYTES - JOBS * stripe}`]
    if (stripe !== undefined) place.push(`--io_size=${(DISK_BYTES - JOBS * stripe) / JOBS}`)
    return [`--name=job${index}`, `--filename=${file}`, ...place, ...ofAll, ...args, ...more]
  })
  return runIn(HERE, 'fio', ofEach.flat())
}

const EMPTY: Disk = { source: undefined, hasSnapshot: false }

/** What the writes find, all over the disk. */
const DISKS: Record<string, Disk> = {
  'an empty disk': EMPTY,
  'clusters of a snapshot': { source: [], hasSnapshot: true },
  'compressed clusters': { source: ['-c'], hasSnapshot: false },
  'compressed clusters, subclusters': { source: ['-c', '-o', 'extended_l2=on'], hasSnapshot: true },
  'an empty vmdk': { ...EMPTY, format: 'vmdk' },
  'an empty qcow': { ...EMPTY, format: 'qcow' },
  'an empty disk, encrypted': { ...EMPTY, isEncrypted: true },
  'clusters of a snapshot, by libfuse': { source: [], hasSnapshot: true, place: overLibfuse(HERE) },
}

interface Disk {
  /** How qemu-img makes its image of a file that is full; undefined for one that is empty. */
  readonly source: readonly string[] | undefined
  readonly hasSnapshot: boolean
  readonly format?: 'vmdk' | 'qcow'
  readonly isEncrypted?: boolean
  readonly place?: Place
}

const PASSPHRASE = 'correct-horse-7'

const encryptedImage = (file: string): EncryptedImage => ({
  file,
  format: 'qcow2',
  passphrase: PASSPHRASE,
})

/** What `vimgfs mount` is told of it. */
function passphraseArgs(image: string, { isEncrypted }: Disk): string[] {
  if (!isEncrypted) return []
  const file = `${image}.passphrase`
  writeFileSync(file, `${PASSPHRASE}\n`)
  return ['--passphrase-file', file]
}

async function isSoundAs(t: Test, image: string, { format, isEncrypted }: Disk): Promise<void> {
  if (format === 'qcow') await isSoundForUs(t, image)
  else await isSound(t, isEncrypted ? asQemuNames(encryptedImage(image)) : image)
}

/** A command of qemu-io for all of the disk: it takes less than 2 GiB at once. */
const onHalves = (command: string): string[] =>
  [0, DISK_BYTES / 2].flatMap(at => ['-c', `${command} ${at} ${DISK_BYTES / 2}`])

/** Makes an image that all cases of a disk can copy: compressing takes seconds of a processor. */
async function makeDisk(t: Test, disk: Disk): Promise<string> {
  const { source, hasSnapshot, format = 'qcow2' } = disk
  const folder = sharedFolder(t)
  const image = join(folder, `disk.${format}`)
  if (source) {
    const raw = join(folder, 'raw')
    await run('qemu-img', ['create', '-q', '-f', 'raw', raw, String(DISK_BYTES)])
    await run('qemu-io', ['-f', 'raw', ...onHalves('write -q -P 0x5a'), raw])
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...source, raw, image])
  } else if (disk.isEncrypted) {
    await makeEncrypted(encryptedImage(image), DISK_BYTES, { format: 'luks' })
  } else await run('qemu-img', ['create', '-q', '-f', format, image, String(DISK_BYTES)])
  if (hasSnapshot) await snapshot(image, 'before')
  return image
}

for (const [index, [name, disk]] of Object.entries(DISKS).entries()) {
  const { place = HERE } = disk
  const skipped = place.transport && noLibfuse().skip ? noLibfuse() : skip
  t.test(`verify=crc32c, on ${name}`, skipped, async t => {
    const made = await makeDisk(t, disk)
    // CI takes every fourth pair of a disk and a case.
    for (const each of CASES.filter((_, i) => isLong || (i + index) % 4 === 0)) {
      await t.test(each.name, async t => {
        const image = join(sharedFolder(t), basename(made))
        copyFileSync(made, image)
        const folder = mountFolder(t)
        const mounting = { place, folder, args: passphraseArgs(image, disk) }
        const first = await mount(t, image, mounting)
        await fio(first.file('disk.raw'), each, '--do_verify=1')
        await unmount(first)
        await isSoundAs(t, image, disk)

        const again = await mount(t, image, mounting)
        await fio(again.file('disk.raw'), each, '--verify_only=1')
        await unmount(again)
        if (!disk.hasSnapshot) return
        const raw = await convert(image, join(folder, '..', 'raw'), 'before')
        await run('qemu-io', ['-f', 'raw', ...onHalves('read -q -P 0x5a'), raw])
        t.pass('the snapshot is what it was')
      })
    }
  })
}

t.test('with trims, on a loop device', { ...skip, ...needsRoot() }, async t => {
  for (const direct of [false, true]) {
    await t.test(direct ? 'direct' : 'buffered', async t => {
      const image = await makeDisk(t, EMPTY)
      const mounted = await mount(t, image)
      const { device, detach } = await loop(t, mounted.file('disk.raw'), { direct })
      const queues = ['--ioengine=libaio', '--iodepth=8', '--direct=1']
      // Each block is trimmed, and some are written again then, while others are trimmed.
      const writes = ['--rw=randtrimwrite', '--bs=4k', ...queues]
      await fio(device, { name: 'writes', args: writes }, '--do_verify=1')
      // Trimmed ranges read as zeros: do the same to a plain file.
      const raw = join(mounted.folder, '..', 'raw')
      await run('dd', [`if=${device}`, `of=${raw}`, 'bs=1M', 'conv=sparse', 'status=none'])
      await run('truncate', ['--size', String(DISK_BYTES), raw])
      const model = await loop(t, raw)
      const share = `--io_size=${JOB_MIB / 2}M`
      const args = ['--rw=randtrim', '--bsrange=4k-160k', '--verify=0', share, '--ioengine=psync']
      for (const each of [device, model.device]) await fio(each, { name: 'trims', args })
      await model.detach()
      await detach()
      await unmount(mounted)
      await isSound(t, image)
      await isSameDisk(t, image, raw)
    })
  }
})
