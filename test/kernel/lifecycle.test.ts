/** How a mount ends: unmounted, by signals, while in use, killed. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import {
  attemptIn,
  hasEnded,
  HERE,
  isMounted,
  isRoot,
  isRunning,
  kill,
  mount,
  mountFolder,
  namespace,
  NO_LOG,
  noFuse,
  noLibfuse,
  ordinaryUser,
  overLibfuse,
  type Place,
  READ_ONLY,
  runIn,
  sampleImage,
  serversOf,
  until,
  launched,
  withoutNotices,
  wordsOf,
} from '../support/mount.js'
import { needsRoot } from '../support/run.js'

const SAMPLE = sampleImage(t)
const skip = noFuse()
/** Signals that end a server. In the background SIGHUP does something else: see reporting.test.ts. */
const SIGNALS = ['SIGINT', 'SIGTERM'] as const

/** Starts a process that keeps `file` open until its standard input ends, and then prints what it reads from the file. */
async function holder(t: Test, place: Place, file: string, cwd = '/') {
  const script = `cd ${cwd}; exec 3<${file}; echo open; read _; dd bs=64k count=1 status=none <&3 2>/dev/null | wc -c`
  const [command, ...args] = [...place.prefix, 'sh', '-c', script]
  const child = spawn(command!, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  return {
    async finish(): Promise<string> {
      const text = once(child.stdout, 'data')
      child.stdin.end('\n')
      return String((await text)[0]).trim()
    },
  }
}

const oneLine = (t: Test, text: string, pattern: RegExp) => {
  t.match(text, pattern)
  t.equal(text.trimEnd().split('\n').length, 1, 'one line')
}

t.test('by root and by an ordinary user', skip, async t => {
  const user = await ordinaryUser(t)
  for (const place of isRoot ? [HERE, user, overLibfuse(user)] : [HERE, overLibfuse(HERE)]) {
    await t.test(place.name, place.transport ? noLibfuse() : {}, t => lifecycle(t, place))
  }
})

async function lifecycle(t: Test, place: Place): Promise<void> {
  // Signals do not depend on the user, so each transport gets all of them as one user.
  const signals = isRoot && place.uid !== 0 && !place.transport ? SIGNALS.slice(0, 1) : SIGNALS
  for (const signal of signals) {
    await t.test(`${signal} unmounts and ends the server`, async t => {
      const { folder, pid, log } = await mount(t, SAMPLE, { place, args: READ_ONLY })
      process.kill(pid, signal)
      t.ok(await hasEnded(t, pid), 'it has ended')
      t.notOk(await isMounted(place, folder))
      t.match(log(), '"msg":"unmounted"')
    })
  }

  for (const signal of [...signals, 'SIGHUP'] as const) {
    await t.test(`${signal} in front: exit code 0`, async t => {
      const folder = mountFolder(t, place)
      const ended = launched(place, ['mount', '-f', ...READ_ONLY, SAMPLE, folder])
      t.ok(await until(() => isMounted(place, folder)))
      t.equal(await runIn(place, 'ls', [folder]), LISTING, 'it answers')
      for (const pid of serversOf(folder)) process.kill(pid, signal)
      const { code, stdout, stderr } = await ended
      t.equal(code, 0)
      t.match(stdout, /^disk\.raw \(16 MiB\) with 2 snapshots in /)
      t.match(stderr, '"msg":"mounted"')
      t.match(stderr, '"msg":"unmounted"')
      t.notOk(await isMounted(place, folder))
    })
  }

  await t.test('in use: detached on a signal, and served to its end', async t => {
    const { folder, pid, file, log } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    const { finish } = await holder(t, place, file('disk.raw'), folder)
    process.kill(pid, 'SIGTERM')
    t.ok(await until(async () => !(await isMounted(place, folder))), 'the mount is gone')
    t.ok(isRunning(pid), 'its server is not')
    t.match(log(), /"reason":"SIGTERM".*in use: detached/)
    t.equal(await finish(), '65536', 'it is served')
    t.ok(await hasEnded(t, pid), 'and ends with the last user')
  })

  await t.test('in use: umount refuses in one line and changes nothing', async t => {
    const { folder, pid, file } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    for (const cwd of ['/', folder]) {
      const { finish } = await holder(t, place, cwd === '/' ? file('disk.raw') : '/dev/zero', cwd)
      const { code, stderr } = await launched(place, ['umount', folder])
      t.equal(code, 1)
      oneLine(t, stderr, /^vimgfs: .*: it is in use .*fuser.*--lazy/)
      t.ok(isRunning(pid))
      t.equal(await runIn(place, 'ls', [folder]), LISTING, 'it works')
      t.equal(await finish(), '65536')
    }
    t.equal((await launched(place, ['umount', folder])).code, 0, 'now it is free')
    t.notOk(isRunning(pid))
  })

  await t.test('in use: umount --lazy takes it away', async t => {
    const { folder, pid, file } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    const { finish } = await holder(t, place, file('disk.raw'))
    t.equal((await launched(place, ['umount', '--lazy', folder])).code, 0)
    t.notOk(await isMounted(place, folder))
    t.ok(isRunning(pid))
    t.equal(await finish(), '65536')
    t.ok(await hasEnded(t, pid))
  })

  await t.test('killed: the dead mount can be removed', async t => {
    const { folder, pid, file } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    kill(pid, 'SIGKILL')
    t.ok(await hasEnded(t, pid))
    const dead = await attemptIn(place, 'cat', [file('disk.raw')])
    t.match(dead.stderr, /endpoint is not connected|caused connection abort/)

    const again = await launched(place, ['mount', ...NO_LOG, ...READ_ONLY, SAMPLE, folder])
    t.equal(again.code, 1)
    oneLine(t, again.stderr, /there already.*vimgfs umount/)

    const { code, stderr } = await launched(place, ['umount', folder])
    t.same({ code, stderr: withoutNotices(stderr) }, { code: 0, stderr: '' })
    t.notOk(await isMounted(place, folder))
    await mount(t, SAMPLE, { place, folder, args: READ_ONLY })
    t.equal(await runIn(place, 'ls', [folder]), LISTING, 'mounted anew')
  })

  await t.test('killed while it is read', async t => {
    const { folder, pid, file } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    const { finish } = await holder(t, place, file('disk.raw'))
    kill(pid, 'SIGKILL')
    t.ok(await hasEnded(t, pid))
    const refused = await launched(place, ['umount', folder])
    if (refused.code !== 0) {
      oneLine(t, refused.stderr, /in use/)
      t.equal((await launched(place, ['umount', '--lazy', folder])).code, 0)
    }
    t.notOk(await isMounted(place, folder))
    t.equal(await finish(), '0', 'the reader got an error')
  })

  await t.test('stopped: umount does not wait for its answer forever', async t => {
    const { folder, pid } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    process.kill(pid, 'SIGSTOP')
    const ended = launched(place, ['umount', folder])
    t.ok(await until(async () => !(await isMounted(place, folder))))
    process.kill(pid, 'SIGCONT')
    t.equal((await ended).code, 0)
    t.ok(await hasEnded(t, pid))
  })

  await t.test('out of descriptors: the server goes on, and ends when there are some', async t => {
    const { pid, log } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    const limit = (files: number) => runIn(place, 'prlimit', [`--pid=${pid}`, `--nofile=${files}:`])
    await limit(3)
    process.kill(pid, 'SIGTERM')
    await sleep(500)
    t.ok(isRunning(pid))
    t.ok(log().length < 20_000, `${log().length} bytes of log`)
    await limit(1000)
    process.kill(pid, 'SIGTERM')
    t.ok(await hasEnded(t, pid))
  })

  await t.test('unmounted by others: the server ends', async t => {
    const { folder, pid } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    await runIn(place, ...unmounting(place, folder))
    t.ok(await hasEnded(t, pid))
  })

  await t.test('other names of the folder', async t => {
    const { folder, pid } = await mount(t, SAMPLE, { place, args: READ_ONLY })
    const parent = join(folder, '..')
    await runIn(place, 'ln', ['-s', folder, join(parent, 'link')])
    t.equal((await launched(place, ['umount', 'link/'], { cwd: parent })).code, 0)
    t.notOk(isRunning(pid))
    await mount(t, SAMPLE, { place, folder, args: READ_ONLY })
    t.equal((await launched(place, ['umount', './mnt'], { cwd: parent })).code, 0)
    t.notOk(await isMounted(place, folder))
  })

  await t.test('interrupted while it starts: nothing is left', async t => {
    const folder = mountFolder(t, place)
    for (const seconds of ['0.05', '0.1', '0.2']) {
      const command = [
        seconds,
        process.execPath,
        ...wordsOf(place, ['mount', ...NO_LOG, ...READ_ONLY, SAMPLE, folder]),
      ]
      const { stdout } = await attemptIn(place, 'timeout', command)
      // The signal may have come after the report.
      if (stdout.includes('Unmount it with')) await launched(place, ['umount', folder])
      t.ok(await until(() => serversOf(folder).length === 0), `after ${seconds} s`)
      t.notOk(await isMounted(place, folder))
    }
  })

  await t.test('many at once', async t => {
    const mounts = await Promise.all(
      Array.from({ length: 4 }, () => mount(t, SAMPLE, { place, args: READ_ONLY })),
    )
    for (const { folder } of mounts) t.equal(await runIn(place, 'ls', [folder]), LISTING)
    const ends = await Promise.all(mounts.map(({ folder }) => launched(place, ['umount', folder])))
    t.same(
      ends.map(end => end.code),
      [0, 0, 0, 0],
    )
    t.notOk(mounts.some(({ pid }) => isRunning(pid)))
  })
}

const LISTING = 'disk.raw\ndisk@before-upgrade.raw\ndisk@fresh-install.raw\n'

const unmounting = (place: Place, folder: string): [string, string[]] =>
  place.uid === 0 ? ['umount', [folder]] : ['fusermount3', ['-u', folder]]

t.test("where the log of an ordinary user's server goes", skip, async t => {
  const place = await ordinaryUser(t)
  const folder = mountFolder(t, place)
  const state = join(folder, '..', 'state')
  await runIn(place, 'mkdir', [state])
  const env = { XDG_STATE_HOME: state }
  const { stdout } = await launched(place, ['mount', ...READ_ONLY, SAMPLE, folder], { env })
  t.match(stdout, `(log: ${existsSync('/dev/log') ? 'syslog' : `${state}/vimgfs/vimgfs.log`})`)
  t.equal((await launched(place, ['umount', folder])).code, 0)
  if (existsSync('/dev/log')) return
  const lines = readFileSync(`${state}/vimgfs/vimgfs.log`, 'utf8').trim().split('\n')
  t.same(
    lines.map(line => JSON.parse(line).msg),
    ['mounted', 'unmounted'],
  )
})

t.test('an image that is removed, or replaced, while it is mounted', skip, async t => {
  const away = {
    removed: (image: string) => rmSync(image),
    replaced: (image: string) => renameSync(sampleImage(t), image),
  }
  for (const [what, act] of Object.entries(away)) {
    for (const place of [HERE, overLibfuse(HERE)]) {
      await t.test(`${what}, ${place.name}`, place.transport ? noLibfuse() : {}, async t => {
        const image = sampleImage(t)
        const { folder, file, log } = await mount(t, image, { place, args: ['-o', 'commit=1'] })
        act(image)
        const to = `of=${file('disk.raw')}`
        await runIn(place, 'dd', [to, 'if=/dev/zero', 'count=8', 'conv=notrunc', 'status=none'])
        t.ok(await until(() => /"why":".*disk\.qcow2 has been removed, or replaced/.test(log())))
        const { code, stderr } = await launched(place, ['umount', folder])
        t.equal(code, 1)
        oneLine(
          t,
          withoutNotices(stderr),
          /unmounted, but .*disk\.qcow2, .* was written to that is gone\n$/,
        )
        t.notOk(await isMounted(place, folder))
      })
    }
  }
  await t.test('read only', async t => {
    const image = sampleImage(t)
    const { folder } = await mount(t, image, { args: READ_ONLY })
    rmSync(image)
    t.equal((await launched(HERE, ['umount', folder])).code, 0)
  })
})

t.test("umount of another user's mount", needsRoot(), async t => {
  const { root, user } = await namespace(t)
  const folder = mountFolder(t, root)
  await mount(t, SAMPLE, { place: root, folder })
  const { code, stderr } = await launched(user, ['umount', folder])
  t.equal(code, 1)
  oneLine(t, stderr, /mnt: user 0 mounted it, and that user or root may unmount it\n$/)
  t.ok(await isMounted(root, folder))
})

t.test('umount refuses a mount of another program', async t => {
  const cases = [
    {
      folder: '/',
      message: /^vimgfs: \/: .* is mounted there, not an image by vimgfs; use umount\n$/,
    },
    { folder: '/proc', message: /^vimgfs: \/proc: proc \(proc\) is mounted there, not an image/ },
    { folder: '/usr/bin', message: /^vimgfs: \/usr\/bin: nothing is mounted there\n$/ },
    { folder: '/no/such', message: /^vimgfs: \/no\/such: nothing is mounted there\n$/ },
    { folder: '', message: /^vimgfs: .*nothing is mounted there\n$/ },
  ]
  for (const { folder, message } of cases) {
    const { code, stderr } = await launched(HERE, ['umount', folder])
    t.equal(code, 1, folder)
    oneLine(t, stderr, message)
  }
})
