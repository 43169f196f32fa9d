/**
 * A guest starts from disk.raw with cache=none, writes to the file system that it runs from and to the
 * disk behind it, discards, and powers off; another start finds all of it, and so does the host.
 */
import { createHash, randomFillSync } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { boot, type Guest, guest, rootFolder } from '../support/guest.js'
import { mount, mountFolder, noFuse, sharedFolder } from '../support/mount.js'
import { attempt, needs, run } from '../support/run.js'
import { convert, isSound, sha256, snapshot, sumOf, unmount } from './disks.js'
import { sized } from './size.js'

const MIB = 2 ** 20
/** The file system has the disk's beginning; the guest's own writes come after it. */
const FILE_SYSTEM_MIB = 128
const DISK_MIB = 384
const PATTERN_AT_MIB = 200
const PATTERN_MIB = sized(16, 64)
const OLD_AT_MIB = 300
const OLD_MIB = 8
const FILE_MIB = sized(12, 48)
const FILES = 200

const range = (mib: number, count: number) => `bs=1M skip=${mib} count=${count}`

/** Run by busybox's shell. Sums go to the serial console: NAME SUM. */
const SCRIPT = [
  '$b echo "guest: started"',
  `sum() { $b echo "guest: $1 $($b dd if=/dev/vda iflag=direct $2 2>/dev/null | $b sha256sum)"; }`,
  'if ! $b grep -q again /proc/cmdline; then',
  `  $b dd if=/dev/urandom of=/data/large bs=1M count=${FILE_MIB} 2>/dev/null`,
  `  i=0; while [ $i -lt ${FILES} ]; do $b echo "file $i" > /data/$i; i=$((i+1)); done`,
  // The kernel asks for RAM; a file in it has no part in the disk.
  '  $b mount -t tmpfs none /tmp',
  `  $b dd if=/dev/urandom of=/tmp/pattern bs=1M count=${PATTERN_MIB} 2>/dev/null`,
  '  $b echo "guest: wrote $($b sha256sum < /tmp/pattern)"',
  `  $b dd if=/tmp/pattern of=/dev/vda bs=4k seek=${PATTERN_AT_MIB * 256} oflag=direct conv=notrunc`,
  `  $b blkdiscard -o ${OLD_AT_MIB * MIB} -l ${(OLD_MIB * MIB) / 2} /dev/vda`,
  'fi',
  '$b sync',
  `sum pattern "${range(PATTERN_AT_MIB, PATTERN_MIB)}"`,
  `sum old "${range(OLD_AT_MIB, OLD_MIB)}"`,
  '$b echo "guest: large $($b sha256sum < /data/large)"',
  '$b echo "guest: small $($b cat /data/[0-9]* | $b sha256sum)"',
  '$b mount -o remount,ro /',
  '$b sync',
  '$b echo "guest: done"',
]

const skip = { ...noFuse(), ...needs('qemu-system-x86_64', 'qemu-img', 'mke2fs', 'debugfs') }

t.test('a guest', skip, async t => {
  const parts = await guest().catch(error => {
    // CI has Debian and its mirrors.
    if (process.env.CI === 'true') throw error
    t.comment(`${error}`)
    return undefined
  })
  await t.test('starts twice', parts ? {} : { skip: "needs Debian's kernel" }, async t => {
    if (parts) await startsTwice(t, parts)
  })
})

async function startsTwice(t: Test, parts: Guest): Promise<void> {
  const folder = sharedFolder(t)
  const image = join(folder, 'disk.qcow2')
  const mountpoint = mountFolder(t)
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, `${DISK_MIB}M`])

  const root = join(folder, 'root')
  mkdirSync(root)
  rootFolder(root, parts, SCRIPT)
  let mounted = await mount(t, image, { folder: mountpoint })
  let disk = mounted.file('disk.raw')
  const mke2fs = ['-q', '-F', '-t', 'ext4', '-d', root, disk, `${FILE_SYSTEM_MIB}M`]
  await run('mke2fs', mke2fs)
  const old = join(folder, 'old')
  writeFileSync(old, randomFillSync(Buffer.alloc(OLD_MIB * MIB)))
  await run('dd', [`if=${old}`, `of=${disk}`, 'bs=1M', `seek=${OLD_AT_MIB}`, 'conv=notrunc,fsync'])
  await unmount(mounted)
  await snapshot(image, 'before')
  const before = sumOf(await convert(image, join(folder, 'raw')))

  mounted = await mount(t, image, { folder: mountpoint })
  disk = mounted.file('disk.raw')
  const first = sumsOf(t, await boot(parts, disk, 'once'))
  t.equal(first.pattern, first.wrote, 'it reads what it wrote')
  t.same(await sumsOnHost(t, folder, disk), withoutWrote(first), 'the host has the same')
  await unmount(mounted)
  await isSound(t, image, 'after the guest')
  t.same(
    await sumsOnHost(t, folder, await convert(image, join(folder, 'raw'))),
    withoutWrote(first),
  )

  mounted = await mount(t, image, { folder: mountpoint })
  const again = sumsOf(t, await boot(parts, mounted.file('disk.raw'), 'again'))
  t.same(again, withoutWrote(first), 'another start finds it')
  t.equal(await sha256(mounted.file('disk@before.raw')), before, 'the snapshot is what it was')
  await unmount(mounted)
  await isSound(t, image, 'after another start')
}

type Sums = Record<string, string>

function sumsOf(t: Test, { code, stdout, stderr }: { code: number } & Record<string, any>): Sums {
  t.match(stdout, 'guest: done', `exit ${code} ${stderr.slice(-500)}`)
  const lines = stdout.matchAll(/guest: (\w+) ([0-9a-f]{64})/g)
  return Object.fromEntries([...lines].map(([, name, sum]) => [name, sum]))
}

const withoutWrote = ({ wrote, ...others }: Sums): Sums => others

/** The same sums, made on the host from a raw disk. */
async function sumsOnHost(t: Test, folder: string, disk: string): Promise<Sums> {
  const part = join(folder, 'part')
  const sum = async (mib: number, count: number) => {
    const place = [`if=${disk}`, `of=${part}`, 'bs=1M', `skip=${mib}`, `count=${count}`]
    await run('dd', place)
    return sumOf(part)
  }
  const checked = await attempt('e2fsck', ['-fn', disk])
  t.equal(checked.code, 0, `e2fsck ${checked.code === 0 ? '' : checked.stdout}`.trim())
  await run('debugfs', ['-R', `dump /data/large ${part}`, disk])
  const large = sumOf(part)
  const names = Array.from({ length: FILES }, (_, i) => `/data/${i}`).sort()
  const contents = names.map(name => `file ${name.slice(6)}\n`).join('')
  const commands = names.map(name => `cat ${name}`).join('\n')
  const small = await run('debugfs', ['-f', '-', disk], { input: commands })
  // debugfs repeats each command before its output.
  t.equal(small.replace(/^debugfs: .*\n/gm, ''), contents, 'small files')
  return {
    pattern: await sum(PATTERN_AT_MIB, PATTERN_MIB),
    old: await sum(OLD_AT_MIB, OLD_MIB),
    large,
    small: createHash('sha256').update(contents).digest('hex'),
  }
}
