/**
 * Makes samples/disk.qcow2: an ext4 disk with two snapshots, three different states. It needs qemu-img, qemu-io, mke2fs
 * and debugfs, but neither root nor a mount.
 *
 *  (1) The result is the same to the byte every time: all time stamps and identifiers are given.
 *  (2) Between two states only the blocks that differ are written. So the states share their other clusters, as in an
 *      image that a virtual machine wrote.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const SAMPLE = fileURLToPath(new URL('../samples/disk.qcow2', import.meta.url))
const SIZE_BYTES = 16 * 1024 * 1024
const BLOCK_BYTES = 4096
const CLUSTER_BYTES = 16 * 1024
const UUID = '76696d67-6673-4000-8000-000000000001'

const STATES = [
  {
    snapshot: 'fresh-install',
    date: '2025-03-01T08:00:00Z',
    removed: [],
    folders: ['/etc', '/home', '/home/sam', '/var', '/var/log'],
    files: {
      '/etc/motd': 'A small disk to look at with vimgfs. Nobody has used it yet.\n',
      '/etc/release': 'Sample 1.0\n',
      '/var/log/install.log': log('install', 2000),
    },
  },
  {
    snapshot: 'before-upgrade',
    date: '2025-06-15T09:30:00Z',
    removed: ['/etc/motd'],
    folders: ['/home/sam/letters'],
    files: {
      '/etc/motd': 'A small disk to look at with vimgfs. Sam has moved in.\n',
      '/home/sam/notes.txt': 'The spare key is under the third flower pot.\n',
      '/home/sam/letters/2025-06.txt':
        'Dear Robin,\nall is well here; the new disk is fast.\nSam\n',
    },
  },
  {
    date: '2025-09-20T18:45:00Z',
    removed: ['/etc/motd', '/etc/release', '/home/sam/notes.txt'],
    folders: [],
    files: {
      '/etc/motd': 'A small disk to look at with vimgfs. Upgraded; where have the notes gone?\n',
      '/etc/release': 'Sample 2.0\n',
      '/var/log/upgrade.log': log('upgrade', 1500),
    },
  },
]

const scratch = mkdtempSync(join(tmpdir(), 'vimgfs-sample-'))
try {
  const raw = join(scratch, 'disk.raw')
  const image = join(scratch, 'disk.qcow2')
  const options = ['-q', '-F', '-b', '1024', '-N', '128', '-m', '0', '-L', 'sample', '-U', UUID]
  options.push('-O', '^has_journal,^resize_inode', '-E', `hash_seed=${UUID},root_owner=0:0`)
  execute('mke2fs', '-t', 'ext4', ...options, raw, `${SIZE_BYTES / 1024}k`)
  const clusters = ['-o', `cluster_size=${CLUSTER_BYTES}`]
  execute('qemu-img', 'create', '-q', '-f', 'qcow2', ...clusters, image, String(SIZE_BYTES))

  let written = Buffer.alloc(SIZE_BYTES)
  for (const state of STATES) {
    change(raw, state)
    const bytes = readFileSync(raw)
    writeDifference(image, written, bytes)
    written = bytes
    if (state.snapshot) execute('qemu-img', 'snapshot', '-c', state.snapshot, image)
  }
  dateSnapshots(image)
  execute('qemu-img', 'check', '-q', image)
  copyFileSync(image, SAMPLE)
} finally {
  rmSync(scratch, { recursive: true })
}

function execute(command, ...args) {
  const env = {
    ...process.env,
    PATH: `${process.env.PATH}:/usr/sbin:/sbin`,
    E2FSPROGS_FAKE_TIME: String(seconds(STATES[0].date)),
  }
  const { status, error, stderr } = spawnSync(command, args, { env, encoding: 'utf8' })
  assert.equal(status, 0, error?.message ?? `${command}: ${stderr}`)
  return stderr
}

/** Changes the file system to the next state. It removes a file before it changes it. */
function change(raw, { date, removed, folders, files }) {
  const commands = [`set_current_time @${seconds(date)}`]
  for (const path of removed) commands.push(`rm ${path}`)
  for (const path of folders) commands.push(`mkdir ${path}`)
  for (const [index, [path, text]] of Object.entries(files).entries()) {
    const source = join(scratch, `file${index}`)
    writeFileSync(source, text, { mode: 0o644 })
    commands.push(`write ${source} ${path}`)
  }
  const script = join(scratch, 'commands')
  writeFileSync(script, `${commands.join('\n')}\n`)
  const said = execute('debugfs', '-w', '-f', script, raw)
  assert.match(said, /^debugfs [^\n]*\n$/) // its version: all it says if nothing went wrong
  execute('e2fsck', '-fn', raw)
}

function writeDifference(image, before, after) {
  const commands = []
  for (let offset = 0; offset < SIZE_BYTES; offset += BLOCK_BYTES) {
    const block = after.subarray(offset, offset + BLOCK_BYTES)
    if (block.equals(before.subarray(offset, offset + BLOCK_BYTES))) continue
    const source = join(scratch, `block${offset}`)
    writeFileSync(source, block)
    commands.push('-c', `write -q -s ${source} ${offset} ${BLOCK_BYTES}`)
  }
  execute('qemu-io', '-f', 'qcow2', ...commands, image)
}

/** Replaces the dates of the snapshots: qemu-img writes the time at which it makes them. */
function dateSnapshots(image) {
  const bytes = readFileSync(image)
  let at = Number(bytes.readBigUInt64BE(64)) // the header's snapshots_offset
  for (const { snapshot, date } of STATES) {
    if (!snapshot) continue
    bytes.writeUInt32BE(seconds(date), at + 16)
    bytes.writeUInt32BE(0, at + 20)
    const [idBytes, nameBytes] = [bytes.readUInt16BE(at + 12), bytes.readUInt16BE(at + 14)]
    const entryBytes = 40 + bytes.readUInt32BE(at + 36) + idBytes + nameBytes
    at += Math.ceil(entryBytes / 8) * 8
  }
  writeFileSync(image, bytes)
}

function seconds(date) {
  return Date.parse(date) / 1000
}

function log(subject, lines) {
  const line = (_, index) => `${String(index + 1).padStart(5, '0')} ${subject}: step done\n`
  return Array.from({ length: lines }, line).join('')
}
