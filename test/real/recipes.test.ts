/**
 * The recipes of README.md and docs/recipes.md, run as they stand there. Only the names change: the folders below /mnt, the backup folder
 * and the command `vimgfs` itself become those of the test.
 *
 * Each file system was copied while it was mounted, as a snapshot of a running machine is taken: its journal has
 * entries that nobody has replayed.
 */
import {
  closeSync,
  copyFileSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { loop, mountDevice } from '../support/loop.js'
import { machine } from '../support/machine.js'
import {
  attemptIn,
  HERE,
  isMounted,
  MAIN,
  mountFolder,
  NO_LOG,
  ordinaryUser,
  sharedFolder,
} from '../support/mount.js'
import { attempt, needs, needsRoot, run, tempFolder } from '../support/run.js'
import { convert } from './disks.js'

const ROOT = new URL('../../', import.meta.url)
const MIB = 2 ** 20
const SECTOR_BYTES = 512
const PARTITION_START_SECTORS = 2048
const skip = {
  ...needs(
    'losetup',
    'partx',
    'sfdisk',
    'mkfs.ext4',
    'mkfs.xfs',
    'mkfs.btrfs',
    'qemu-img',
    'ddrescue',
    'debugfs',
    'qemu-system-x86_64',
  ),
  ...needsRoot(),
}

interface Content {
  readonly type: 'ext4' | 'xfs' | 'btrfs'
  readonly make: readonly string[]
  readonly sizeBytes: number
  readonly isPartitioned: boolean
}

const EXT4 = { type: 'ext4', make: ['mkfs.ext4', '-q', '-F'], sizeBytes: 64 * MIB } as const
const XFS: Content = {
  type: 'xfs',
  make: ['mkfs.xfs', '-q', '-f'],
  sizeBytes: 320 * MIB,
  isPartitioned: false,
}
const PARTITIONED: Content = { ...EXT4, isPartitioned: true }

interface Recipe {
  readonly lead: RegExp
  readonly content: Content
  readonly prints?: RegExp
  /** Run by an ordinary user. */
  readonly needsNoRoot?: true
  /** Changes the image before the recipe runs. */
  readonly prepare?: (folder: string, t: Test) => Promise<void>
  /** Looks at what the recipe has made. */
  readonly check?: (t: Test, folder: string) => Promise<void>
}

/** Each recipe, in the order of the documents: the end of the text before its commands, and what it works on. */
const RECIPES: readonly Recipe[] = [
  { lead: /^Change a file in a disk:/m, content: PARTITIONED },
  { lead: /^Look into a snapshot\. `noload`/m, content: PARTITIONED, prints: /^note$/m },
  {
    lead: /^Use it with a virtual machine/m,
    content: PARTITIONED,
    prepare: makeBootable,
    check: hasBooted,
  },
  {
    lead: /^Use it as an ordinary user/m,
    content: PARTITIONED,
    needsNoRoot: true,
    prints: /^second$/m,
  },
  { lead: /^Rescue the data/m, content: PARTITIONED, prepare: cutOff, check: isRescued },
  {
    lead: /a disk without partitions:/,
    content: { ...EXT4, isPartitioned: false },
    prints: /^note$/m,
  },
  {
    lead: /The same with xfs:/,
    content: XFS,
    prints: /^note$/m,
  },
  {
    lead: /The same with btrfs:/,
    content: {
      type: 'btrfs',
      make: ['mkfs.btrfs', '-q', '-f'],
      sizeBytes: 128 * MIB,
      isPartitioned: false,
    },
    prints: /^note$/m,
  },
  { lead: /`partx` lists partitions/, content: PARTITIONED, prints: /^ 1 +2048 (.|\n)*^note$/m },
  {
    lead: /^Take a file out of last week's snapshot/m,
    content: PARTITIONED,
    needsNoRoot: true,
    prints: /old-note$/m,
  },
  {
    lead: /^Check the file system in a snapshot's partition/m,
    content: PARTITIONED,
    needsNoRoot: true,
    prints: /recovering journal(.|\n)*^Pass 5: (.|\n)*^second$/m,
    prepare: keepCopy,
    check: isUnchanged,
  },
  {
    lead: /something in a snapshot and throw it away/,
    content: PARTITIONED,
    prints: /^second$/m,
    prepare: keepCopy,
    check: isUnchanged,
  },
  {
    lead: /The same with xfs, on a disk/,
    content: XFS,
    prints: /^second$/m,
    prepare: keepCopy,
    check: isUnchanged,
  },
  { lead: /Try an upgrade, and decide later/, content: PARTITIONED, check: isUpgraded },
  { lead: /of a system that is mounted/, content: PARTITIONED, prints: /^second$/m },
  { lead: /of a machine that is off/, content: PARTITIONED, prints: /before-todays-upgrade/ },
  {
    lead: /a running machine's snapshots/,
    content: PARTITIONED,
    prints: /^disk@before-upgrade\.raw$(.|\n)*^disk@today\.raw$(.|\n)*^second$/m,
    prepare: async (folder, t) => {
      const vm = await machine(t, join(folder, 'disk.qcow2'))
      await vm.tell('savevm today')
    },
  },
  { lead: /how many bytes changed/, content: PARTITIONED, prints: /^[1-9][0-9]*$/m },
  {
    lead: /which parts of the disk have changed/,
    content: PARTITIONED,
    prints: /^.* changed, in [0-9]+ ranges?$(.|\n)*^Images are identical\.$/m,
  },
  {
    lead: /^From qcow2 to raw and back/m,
    content: PARTITIONED,
    check: isConverted,
  },
  {
    lead: /^From qcow2 to vmdk and back/m,
    content: PARTITIONED,
    check: isConverted,
  },
]

/** All blocks of commands: those of the section "Recipes" in README.md, then those of docs/recipes.md. */
function recipes(): { lead: string; commands: string }[] {
  const readme = readFileSync(new URL('README.md', ROOT), 'utf8')
  const section = readme.split('## Recipes\n')[1]?.split('\n## ')[0] ?? ''
  return [...blocks(section), ...blocks(readFileSync(new URL('docs/recipes.md', ROOT), 'utf8'))]
}

/** The blocks of commands of a text, each with the text before it. */
function blocks(text: string): { lead: string; commands: string }[] {
  const parts = text.split('```')
  const found: { lead: string; commands: string }[] = []
  for (let i = 0; i + 1 < parts.length; i += 2)
    found.push({ lead: parts[i] as string, commands: parts[i + 1] as string })
  return found
}

/** A qcow2 whose snapshot "before-upgrade" was taken while the file system was in use. */
async function makeImage(t: Test, folder: string, content: Content): Promise<string> {
  const raw = join(folder, 'disk.img')
  writeFileSync(raw, '')
  truncateSync(raw, content.sizeBytes)
  const startBytes = content.isPartitioned ? PARTITION_START_SECTORS * SECTOR_BYTES : 0
  if (content.isPartitioned) {
    const script = `label: dos\nstart=${PARTITION_START_SECTORS}, type=83\n`
    await run('sfdisk', ['--quiet', '--no-reread', raw], { input: script })
  }
  const inUse = join(folder, 'in-use.img')
  const { device, detach } = await loop(t, raw, { offsetBytes: startBytes })
  const [make = '', ...flags] = content.make
  await run(make, [...flags, device])
  const inside = await mountDevice(t, device, content.type)
  const note = join(inside.folder, 'note')
  writeFileSync(note, 'first\n')
  // Freezing empties the journal: without it, xfs would not know the file.
  await run('fsfreeze', ['--freeze', inside.folder])
  await run('fsfreeze', ['--unfreeze', inside.folder])
  // fsync of one file goes through the journal or the log tree, which the copy then has to replay.
  writeFileSync(note, 'second\n')
  const fd = openSync(note, 'r+')
  fsyncSync(fd)
  closeSync(fd)
  await run('blockdev', ['--flushbufs', device])
  // Node would write the holes out.
  await run('cp', [raw, inUse])
  await inside.unmount()
  await detach()
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', inUse, image])
  await run('qemu-img', ['snapshot', '-c', 'before-upgrade', image])
  // Today's disk is another one.
  await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'qcow2', raw, image])
  return image
}

async function isUpgraded(t: Test, folder: string): Promise<void> {
  const raw = await convert(join(folder, 'disk.qcow2'), join(folder, 'after.img'))
  t.ok(readFileSync(raw).includes('upgraded\n'), 'the image has what was written')
}

async function keepCopy(folder: string): Promise<void> {
  copyFileSync(join(folder, 'disk.qcow2'), join(folder, 'kept.qcow2'))
}

async function isUnchanged(t: Test, folder: string): Promise<void> {
  await run('cmp', [join(folder, 'disk.qcow2'), join(folder, 'kept.qcow2')])
  t.pass('the image is as before')
}

/** Cuts off the file's end, where clusters of the disk are. */
async function cutOff(folder: string): Promise<void> {
  const image = join(folder, 'disk.qcow2')
  truncateSync(image, statSync(image).size - 4 * 65536)
}

/** Everything but what the map calls bad is as it was on the disk before the damage. */
async function isRescued(t: Test, folder: string): Promise<void> {
  const rescued = Buffer.alloc(EXT4.sizeBytes)
  readFileSync(join(folder, 'backup/disk.raw')).copy(rescued)
  const before = readFileSync(join(folder, 'disk.img'))
  const map = readFileSync(join(folder, 'backup/disk.map'), 'utf8')
  const lines = [...map.matchAll(/^(0x[0-9A-F]+) +(0x[0-9A-F]+) +([-+])$/gm)]
  const ranges = lines.map(([, at, size, state]) => ({
    isBad: state === '-',
    from: Number(at),
    to: Number(at) + Number(size),
  }))
  t.ok(ranges.some(({ isBad }) => isBad))
  t.equal(ranges.at(-1)?.to, EXT4.sizeBytes)
  for (const { isBad, from, to } of ranges) {
    if (!isBad) t.ok(rescued.subarray(from, to).equals(before.subarray(from, to)), `from ${from}`)
  }
}

/** The copy in the backup folder has the same disk. */
async function isConverted(t: Test, folder: string): Promise<void> {
  const files = [join(folder, 'disk.qcow2'), join(folder, 'backup/disk.qcow2')]
  t.match(await attempt('qemu-img', ['compare', '-f', 'qcow2', '-F', 'qcow2', ...files]), {
    code: 0,
  })
}

/** Writes a boot sector to the disk that copies itself to sector 1 and powers the machine off. */
async function makeBootable(folder: string): Promise<void> {
  const code = [
    ...[0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0], // xor ax, ax; mov ds, ax; mov es, ax
    ...[0x8e, 0xd0, 0xbc, 0x00, 0x7c], // mov ss, ax; mov sp, 0x7c00
    ...[0xbb, 0x00, 0x7c], // mov bx, 0x7c00: where the BIOS has loaded this sector
    ...[0xb9, 0x02, 0x00, 0xb6, 0x00], // mov cx, 2; mov dh, 0: cylinder 0, head 0, sector 2
    ...[0xb8, 0x01, 0x03, 0xcd, 0x13], // mov ax, 0x0301; int 0x13: write one sector
    ...[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef], // mov dx, 0x604; mov ax, 0x2000; out dx, ax: power off
    ...[0xf4, 0xeb, 0xfd], // hlt, for ever
  ]
  const sector = Buffer.alloc(SECTOR_BYTES)
  sector.set(code)
  sector.set([0x55, 0xaa], SECTOR_BYTES - 2)
  const file = join(folder, 'boot-sector')
  writeFileSync(file, sector)
  await run('qemu-io', ['-c', `write -s ${file} 0 512`, join(folder, 'disk.qcow2')])
}

async function hasBooted(t: Test, folder: string): Promise<void> {
  const raw = readFileSync(await convert(join(folder, 'disk.qcow2'), join(folder, 'after.img')))
  const sector = readFileSync(join(folder, 'boot-sector'))
  t.ok(raw.subarray(SECTOR_BYTES, 2 * SECTOR_BYTES).equals(sector), 'the machine wrote to its disk')
}

t.test('every recipe has a test', async t => {
  const found = recipes()
  t.equal(found.length, RECIPES.length)
  for (const [index, { lead }] of RECIPES.entries()) t.match(found[index]?.lead, lead)
})

for (const [index, recipe] of RECIPES.entries()) {
  const { lead, content, prints = /^/, needsNoRoot, prepare, check } = recipe
  t.test(String(lead), skip, async t => {
    const folder = sharedFolder(t)
    await makeImage(t, folder, content)
    await prepare?.(folder, t)
    const place = needsNoRoot ? await ordinaryUser(t) : HERE
    const mountpoint = mountFolder(t, place, 'x')
    const commands = (recipes()[index] as { commands: string }).commands
      .replaceAll('/mnt/x', mountpoint)
      .replaceAll(/\/mnt\/(root|old)|\/backup/g, name => join(folder, name.slice(1)))
    for (const name of ['mnt/root', 'mnt/old', 'backup'])
      mkdirSync(join(folder, name), { recursive: true })
    // A kernel without parsers for partition tables (CONFIG_MSDOS_PARTITION) scans in vain: partx does it there.
    const losetup =
      'losetup() { d=$(command losetup "$@") && { case "$*" in *--partscan*) [ -b "$d"p1 ] || partx --add $d;; esac; echo $d; }; }'
    // Whatever fails, nothing stays mounted on the loop devices or attached to the mount.
    const script = [
      'set -e',
      `HOME=${dirname(mountpoint)}`,
      `vimgfs() { c=$1; shift; [ $c != mount ] || set -- ${NO_LOG.join(' ')} "$@"; "${process.execPath}" "${MAIN}" $c "$@"; }`,
      losetup,
      'qemu-system-x86_64() { command qemu-system-x86_64 -display none "$@"; }',
      'trap \'s=$?; [ $s = 0 ] || { umount -l mnt/root mnt/old; [ -z "$LOOP" ] || losetup -d $LOOP; } 2>&-; exit $s\' EXIT',
      commands,
    ].join('\n')
    const { code, stdout, stderr } = await attemptIn(place, 'bash', ['-c', script], {
      cwd: folder,
    })
    t.equal(code, 0, stderr)
    t.match(stdout, prints)
    t.notOk(await isMounted(place, mountpoint))
    await check?.(t, folder)
  })
}

t.test('a journal that was not replayed needs noload', skip, async t => {
  const folder = tempFolder(t)
  await makeImage(t, folder, { ...EXT4, isPartitioned: false })
  const copy = join(folder, 'copy.img')
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-l', 'before-upgrade', '-O', 'raw', image, copy])
  const { device } = await loop(t, copy, { readOnly: true })
  const inside = join(folder, 'inside')
  mkdirSync(inside)
  const { code } = await attempt('mount', ['-t', 'ext4', '-o', 'ro', device, inside])
  t.not(code, 0, 'the snapshots of these tests are of the kind that the recipes are for')
})
