/**
 * The recipes of README.md and docs/recipes.md, run as they stand there. Only the names change: the folders below /mnt, the backup folder
 * and the command `vimgfs` itself become those of the test.
 *
 * Each disk was copied while its file system was mounted, as a snapshot of a running machine is taken: its journal
 * has entries that nobody has replayed.
 */
import {
  closeSync,
  copyFileSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { loop, mountDevice } from '../support/loop.js'
import { HERE, isMounted, MAIN, mountFolder, NO_LOG } from '../support/mount.js'
import { attempt, needs, needsRoot, run, tempFolder } from '../support/run.js'

const ROOT = new URL('../../', import.meta.url)
const MIB = 2 ** 20
const SECTOR_BYTES = 512
const PARTITION_START_SECTORS = 2048
const LIMIT = { timeout: 60_000 }
const skip = {
  ...needs('losetup', 'partx', 'sfdisk', 'mkfs.ext4', 'mkfs.xfs', 'mkfs.btrfs', 'qemu-img'),
  ...needsRoot(),
}

interface Content {
  readonly type: 'ext4' | 'xfs' | 'btrfs'
  readonly make: readonly string[]
  readonly sizeBytes: number
  readonly isPartitioned: boolean
}

const EXT4 = { type: 'ext4', make: ['mkfs.ext4', '-q', '-F'], sizeBytes: 64 * MIB } as const
const PARTITIONED: Content = { ...EXT4, isPartitioned: true }

/** What each recipe is for, by the last sentence before its commands, in the order of the documents. */
const RECIPES: readonly { lead: RegExp; content: Content; prints?: RegExp }[] = [
  { lead: /^Change a file on a disk:/m, content: PARTITIONED },
  { lead: /a snapshot of a partitioned disk/, content: PARTITIONED, prints: /^note$/m },
  {
    lead: /a disk without partitions:/,
    content: { ...EXT4, isPartitioned: false },
    prints: /^note$/m,
  },
  {
    lead: /The same with xfs:/,
    content: {
      type: 'xfs',
      make: ['mkfs.xfs', '-q', '-f'],
      sizeBytes: 320 * MIB,
      isPartitioned: false,
    },
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
  { lead: /how many bytes changed/, content: PARTITIONED, prints: /^[1-9][0-9]*$/m },
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
  await run(make, [...flags, device], LIMIT)
  const inside = await mountDevice(t, device, content.type)
  const note = join(inside.folder, 'note')
  writeFileSync(note, 'first\n')
  // Freezing empties the journal: without it, xfs would not know the file.
  await run('fsfreeze', ['--freeze', inside.folder], LIMIT)
  await run('fsfreeze', ['--unfreeze', inside.folder], LIMIT)
  // fsync of one file goes through the journal or the log tree, which the copy then has to replay.
  writeFileSync(note, 'second\n')
  const fd = openSync(note, 'r+')
  fsyncSync(fd)
  closeSync(fd)
  await run('blockdev', ['--flushbufs', device], LIMIT)
  copyFileSync(raw, inUse)
  await inside.unmount()
  await detach()
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', inUse, image])
  await run('qemu-img', ['snapshot', '-c', 'before-upgrade', image])
  // Today's disk is another one.
  await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'qcow2', raw, image])
  return image
}

t.test('every recipe has a test', async t => {
  const found = recipes()
  t.equal(found.length, RECIPES.length)
  for (const [index, { lead }] of RECIPES.entries()) t.match(found[index]?.lead, lead)
})

for (const [index, { lead, content, prints = /^/ }] of RECIPES.entries()) {
  t.test(String(lead), skip, async t => {
    const folder = tempFolder(t)
    await makeImage(t, folder, content)
    const mountpoint = mountFolder(t, HERE)
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
      `vimgfs() { c=$1; shift; [ $c != mount ] || set -- ${NO_LOG.join(' ')} "$@"; "${process.execPath}" "${MAIN}" $c "$@"; }`,
      losetup,
      'trap \'s=$?; [ $s = 0 ] || { umount -l mnt/root mnt/old; [ -z "$LOOP" ] || losetup -d $LOOP; } 2>&-; exit $s\' EXIT',
      commands,
    ].join('\n')
    const { code, stdout, stderr } = await attempt('bash', ['-c', script], {
      ...LIMIT,
      cwd: folder,
    })
    t.equal(code, 0, stderr)
    t.match(stdout, prints)
    t.notOk(await isMounted(HERE, mountpoint))
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
  const { code } = await attempt('mount', ['-t', 'ext4', '-o', 'ro', device, inside], LIMIT)
  t.not(code, 0, 'the snapshots of these tests are of the kind that the recipes are for')
})
