/**
 * `vimgfs snapshot create --freeze`: file systems on the disk are whole in the snapshot, and they are thawed whatever happens.
 * Freezing a frozen file system fails (fsfreeze), which tells whether it is frozen.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { loop, mountDevice } from '../support/loop.js'
import {
  HERE,
  kill,
  MAIN,
  mount,
  mountFolder,
  ordinaryUser,
  sampleImage,
  vimgfs,
} from '../support/mount.js'
import { attempt, needs, needsRoot, run, tempFolder } from '../support/run.js'
import { until } from '../support/until.js'

const skip = {
  ...needs('losetup', 'mkfs.ext4', 'mkfs.xfs', 'fsfreeze', 'qemu-img'),
  ...needsRoot(),
}
const MIB = 2 ** 20

interface Kind {
  readonly type: 'ext4' | 'xfs'
  readonly make: readonly string[]
  readonly sizeBytes: number
  /** Mounts it as it is, without what only its journal has. */
  readonly options: readonly string[]
}

const KINDS: readonly Kind[] = [
  { type: 'ext4', make: ['mkfs.ext4', '-q'], sizeBytes: 32 * MIB, options: ['ro', 'noload'] },
  {
    type: 'xfs',
    make: ['mkfs.xfs', '-q'],
    sizeBytes: 320 * MIB,
    options: ['ro', 'norecovery', 'nouuid'],
  },
]

/** Mounts a new image with a file system on it, which is mounted, too. */
async function mounted(t: Test, { type, make, sizeBytes }: Kind = KINDS[0]!) {
  const image = join(tempFolder(t), 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, String(sizeBytes)])
  const disk = await mount(t, image)
  const { device } = await loop(t, disk.file('disk.raw'))
  await run(make[0]!, [...make.slice(1), device])
  const inside = await mountDevice(t, device, type)
  return { image, disk, device, folder: inside.folder }
}

async function isFrozen(folder: string): Promise<boolean> {
  if ((await attempt('fsfreeze', ['--freeze', folder])).code !== 0) return true
  await run('fsfreeze', ['--unfreeze', folder])
  return false
}

/** Writes files until it is told to stop. */
function writer(t: Test, folder: string) {
  const script =
    'i=0; while :; do i=$((i+1)); echo $i > "$1/f$((i % 50))"; [ $((i % 7)) -gt 0 ] || sync "$1/f$((i % 50))"; [ -e "$1/stop" ] && exit 0; done'
  const child = spawn('sh', ['-c', script, 'sh', folder], { stdio: 'ignore' })
  const ended = once(child, 'exit')
  const stop = async () => {
    writeFileSync(join(folder, 'stop'), '')
    await ended
  }
  t.teardown(() => child.kill('SIGKILL'))
  return { stop, hasBegun: () => existsSync(join(folder, 'f49')) }
}

for (const kind of KINDS) {
  t.test(`${kind.type} is whole in the snapshot, with writes in flight`, skip, async t => {
    const { image, disk, device, folder } = await mounted(t, kind)
    const { stop, hasBegun } = writer(t, folder)
    t.ok(await until(hasBegun))
    for (const tag of ['one', 'two']) {
      writeFileSync(join(folder, 'marker'), tag)
      t.same(await vimgfs(HERE, ['snapshot', 'create', '--freeze', image, tag]), {
        code: 0,
        stdout: `frozen meanwhile: ${device} (${kind.type} on ${folder})\n`,
        stderr: '',
      })
    }
    await stop()
    t.notOk(await isFrozen(folder))
    for (const tag of ['one', 'two']) {
      const old = await loop(t, disk.file(`disk@${tag}.raw`), { readOnly: true })
      const inside = await mountDevice(t, old.device, kind.type, kind.options)
      // Nobody has synced it, and without its journal it is there all the same.
      t.equal(readFileSync(join(inside.folder, 'marker'), 'utf8'), tag)
      for (const name of readdirSync(inside.folder)) statSync(join(inside.folder, name))
      await inside.unmount()
      await old.detach()
    }
    t.match(await vimgfs(HERE, ['snapshot', 'create', image, 'three']), {
      code: 0,
      stdout: '',
      stderr:
        /^vimgfs: \/dev\/loop[^\n]* is in use: in the snapshot it is as after a power cut; --freeze[^\n]*\n$/,
    })
  })
}

t.test('file systems are thawed after an error', skip, async t => {
  const { image, folder } = await mounted(t)
  t.match(await vimgfs(HERE, ['snapshot', 'create', image, 'one']), { code: 0 })
  t.match(await vimgfs(HERE, ['snapshot', 'create', '--freeze', image, 'one']), { code: 1 })
  t.notOk(await isFrozen(folder))
})

t.test('what was frozen before stays so', skip, async t => {
  const { image, device, folder } = await mounted(t)
  await run('fsfreeze', ['--freeze', folder])
  t.teardown(() => attempt('fsfreeze', ['--unfreeze', folder]))
  t.match(await vimgfs(HERE, ['snapshot', 'create', '--freeze', image, 'one']), {
    code: 0,
    stdout: `frozen before, and still: ${device} (ext4 on ${folder})\n`,
  })
  t.ok(await isFrozen(folder))
  await run('fsfreeze', ['--unfreeze', folder])
})

for (const victim of ['command', 'guard'] as const) {
  t.test(`kill -9 of the ${victim} thaws`, skip, async t => {
    const { image, folder } = await mounted(t)
    const { command, sync } = await heldFrozen(t, image)
    t.ok(await isFrozen(folder))
    kill(victim === 'command' ? command.pid! : guardOf(command.pid!), 'SIGKILL')
    if (victim === 'guard') kill(sync(), 'SIGKILL')
    t.ok(await until(async () => !(await isFrozen(folder))))
    kill(sync(), 'SIGKILL')
    // A write that hung would hang for ever.
    t.match(
      await attempt('timeout', [
        '60',
        'sh',
        '-c',
        `echo > ${folder}/after && sync ${folder}/after`,
      ]),
      {
        code: 0,
      },
    )
  })
}

/** Starts the command, and waits until it has frozen the file systems: its `sync` hangs then. */
async function heldFrozen(t: Test, image: string) {
  const folder = tempFolder(t)
  const pid = join(folder, 'pid')
  writeFileSync(
    join(folder, 'sync'),
    `#!/bin/sh\necho $$ > ${pid}.new; mv ${pid}.new ${pid}; exec sleep 600\n`,
  )
  chmodSync(join(folder, 'sync'), 0o755)
  const command = spawn(process.execPath, [MAIN, 'snapshot', 'create', '--freeze', image, 'one'], {
    env: { ...process.env, NODE_OPTIONS: '', PATH: `${folder}:${process.env.PATH}` },
    stdio: 'ignore',
  })
  const ended = once(command, 'exit')
  const sync = () => Number(readFileSync(pid, 'utf8'))
  t.teardown(async () => {
    command.kill('SIGKILL')
    if (existsSync(pid)) kill(sync(), 'SIGKILL')
    await ended
  })
  if (!(await until(() => existsSync(pid)))) throw new Error('nothing was frozen')
  return { command, sync }
}

function guardOf(command: number): number {
  const text = readFileSync(`/proc/${command}/task/${command}/children`, 'utf8')
  const isGuard = (pid: number) =>
    readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('hold-frozen')
  return text.trim().split(' ').map(Number).find(isGuard) ?? -1
}

t.test('file systems on files of frozen ones are frozen before', skip, async t => {
  const { image, device, folder } = await mounted(t)
  const file = join(folder, 'file')
  await run('truncate', ['-s', '8M', file])
  const second = await loop(t, file)
  await run('mkfs.ext4', ['-q', second.device])
  const inner = await mountDevice(t, second.device, 'ext4')
  writeFileSync(join(inner.folder, 'note'), 'note')
  t.same(await vimgfs(HERE, ['snapshot', 'create', '--freeze', image, 'one']), {
    code: 0,
    stdout: `frozen meanwhile: ${second.device} (ext4 on ${inner.folder}), ${device} (ext4 on ${folder})\n`,
    stderr: '',
  })
  t.notOk(await isFrozen(inner.folder))
  t.notOk(await isFrozen(folder))
  await inner.unmount()
  await second.detach()
})

t.test('what could not go on without a frozen file system is refused', skip, async t => {
  const { image, folder } = await mounted(t)
  const words = [process.execPath, MAIN, 'snapshot', 'create', '--freeze', image, 'one']
  const env = { NODE_OPTIONS: '' }
  const { code, stderr } = await attempt('sh', ['-c', '"$@" > $OUT', 'sh', ...words], {
    env: { ...env, OUT: join(folder, 'out') },
  })
  t.equal(code, 1)
  t.match(
    stderr,
    /^vimgfs: --freeze would wait for ever: [^\n]*inside\/out lies on a file system[^\n]*\n$/,
  )
  t.notOk(await isFrozen(folder))

  // A mount whose log lies there.
  const second = sampleImage(t)
  const other = await mount(t, second, { args: ['--log-file', join(folder, 'log')] })
  const above = await loop(t, other.file('disk.raw'))
  const inside = await mountDevice(t, above.device, 'ext4')
  t.match(await vimgfs(HERE, ['snapshot', 'create', '--freeze', second, 'one']), { code: 0 })
  t.notOk(await isFrozen(inside.folder))
  await inside.unmount()
  await above.detach()
  await vimgfs(HERE, ['umount', other.folder])
})

/**
 * Mounts an image where a loop device's file was before, so that the file system on that device counts as one on the image's disk: a
 * real one of these cannot hold what its own mount needs from the beginning.
 */
async function mountedOver(t: Test, what: 'image' | 'log' | 'socket') {
  const point = mountFolder(t)
  const file = join(point, 'disk.raw')
  await run('truncate', ['-s', '32M', file])
  const { device, detach } = await loop(t, file)
  await run('mkfs.ext4', ['-q', device])
  const inside = await mountDevice(t, device, 'ext4')
  const folder = what === 'image' ? inside.folder : tempFolder(t)
  const image = join(folder, 'disk.qcow2')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', image, '1M'])
  if (what === 'socket') {
    const sockets = join(inside.folder, 'sockets')
    mkdirSync(sockets, { mode: 0o700 })
    mkdirSync('/run/vimgfs', { recursive: true, mode: 0o700 })
    await run('mount', ['--bind', sockets, '/run/vimgfs'])
    t.teardown(() => attempt('umount', ['-l', '/run/vimgfs']))
  }
  const args = what === 'log' ? ['--log-file', join(inside.folder, 'log')] : []
  const disk = await mount(t, image, { folder: point, args })
  const end = async () => {
    t.match(await vimgfs(HERE, ['umount', disk.folder]), { code: 0 })
    if (what === 'socket') await run('umount', ['/run/vimgfs'])
    await inside.unmount()
    await detach()
  }
  return { image, folder: inside.folder, end }
}

for (const [what, named] of [
  ['image', /disk\.qcow2/],
  ['log', /inside\/log/],
  ['socket', /sockets|\/run\/vimgfs/],
] as const) {
  t.test(`it is refused where the ${what} lies on the file system`, skip, async t => {
    const { image, folder, end } = await mountedOver(t, what)
    const { code, stderr } = await vimgfs(HERE, ['snapshot', 'create', '--freeze', image, 'one'])
    t.equal(code, 1)
    t.match(stderr, /^vimgfs: --freeze would wait for ever: [^\n]* would be frozen[^\n]*\n$/)
    t.match(stderr, named)
    t.notOk(await isFrozen(folder))
    t.match(await vimgfs(HERE, ['snapshot', 'create', image, 'one']), { code: 0 })
    await end()
  })
}

t.test('it is for root', needsRoot(), async t => {
  const user = await ordinaryUser(t)
  t.match(await vimgfs(user, ['snapshot', 'create', '--freeze', sampleImage(t), 'one']), {
    code: 2,
    stderr: /^vimgfs: --freeze is for root[^\n]*\n$/,
  })
})
