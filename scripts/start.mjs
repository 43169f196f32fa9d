/**
 * npm start [-- IMAGE [MOUNTPOINT [OPTIONS]]]: mounts an image (the sample, if none is named), lists its files, and
 * unmounts at Ctrl-C.
 *
 *  (1) The server has a process group of its own, so that Ctrl-C reaches it only through this script, once.
 *  (2) However the server ends, no mount stays, and no folder that was made here.
 *  (3) Only show() touches the mount, and nothing waits for show() alone: a server that hangs must not prevent unmounting.
 */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readdir, readFile, realpath, rmdir, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join, parse, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  CLI,
  ensureBuilt,
  ensureCommands,
  ensureNpmPackages,
  howToInstall,
  ROOT,
  run,
  Stop,
} from './bootstrap.mjs'

const USAGE = 'Usage: npm start [-- IMAGE [MOUNTPOINT [options of vimgfs mount]]]'
const SAMPLE = join(ROOT, 'samples/disk.qcow2')
/** How long a server may take to end after a signal, and after its mount has gone. */
const PATIENCE_MS = 10_000
const BUSY_MS = 1_000

run(async () => {
  const [image, mountpoint, ...options] = process.argv.slice(2)
  if (image?.startsWith('-') || mountpoint?.startsWith('-')) throw new Stop(USAGE)
  ensureNpmPackages()
  const missing = ensureCommands(['fusermount3'])
  if (missing.length > 0) throw new Stop(`fuse3 is missing. Install ${howToInstall(missing)}`)
  ensureBuilt()

  // npm has changed to this package's folder; the user's paths are relative to where npm was called.
  const cwd = process.env.INIT_CWD ?? process.cwd()
  const stop = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => stop.abort())

  const imagePath = image ? resolve(cwd, image) : SAMPLE
  if (mountpoint) return serve(imagePath, resolve(cwd, mountpoint), options, cwd, stop.signal)
  const folder = await mkdtemp(join(tmpdir(), 'vimgfs-'))
  try {
    return await serve(imagePath, folder, options, cwd, stop.signal)
  } finally {
    await rmdir(folder)
  }
})

/** Mounts, and waits for the server's end or for `stop`. Returns the exit code. */
async function serve(image, mountpoint, options, cwd, stop) {
  const folder = await realpath(mountpoint).catch(() => mountpoint)
  const before = await mountsOn(folder)
  const isMounted = async () => (await mountsOn(folder)) > before

  const quiet = ['--quiet', '--log-level=warn'] // show() prints instead
  const args = [CLI, 'mount', '-f', ...quiet, ...options, image, folder]
  const stdio = ['ignore', 'inherit', 'inherit']
  const server = spawn(process.execPath, args, { cwd, stdio, detached: true }) // rule (1)
  const hasEnded = () => server.exitCode !== null || server.signalCode !== null
  const exit = once(server, 'exit')
  const over = Promise.race([exit, stop.aborted || once(stop, 'abort')])

  while (!hasEnded() && !stop.aborted && !(await isMounted())) await sleep(20)
  if (!hasEnded() && !stop.aborted) {
    const shown = show(image, folder).catch(error => console.error(error.message))
    await Promise.race([shown, over])
  }
  await over

  if (!hasEnded()) {
    server.kill('SIGTERM')
    await Promise.race([exit, unmounted(isMounted), sleep(PATIENCE_MS, null, { ref: false })])
  }
  if (await isMounted()) {
    // rule (2): the server was killed, or has to be.
    server.kill('SIGKILL')
    spawnSync(process.execPath, [CLI, 'umount', folder], { stdio })
  } else if (!hasEnded()) {
    console.log(`Unmounted. Process ${server.pid} ends when the last open file is closed.`)
    server.unref()
  }
  return stop.aborted ? 0 : (server.exitCode ?? 1)
}

/** Returns some time after unmounting, when the server should have ended. If files are open, it goes on. */
async function unmounted(isMounted) {
  while (await isMounted()) await sleep(20)
  await sleep(BUSY_MS)
}

/** Returns how many mounts a folder has. It asks the kernel and does not touch the folder: rule (3). */
async function mountsOn(folder) {
  const octal = (_, digits) => String.fromCharCode(Number.parseInt(digits, 8))
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')
  const places = lines.map(line => line.split(' ')[4]?.replace(/\\(\d{3})/g, octal))
  return places.filter(place => place === folder).length
}

async function show(image, folder) {
  const names = await readdir(folder)
  const disk = `${parse(image).name}.raw`
  const [file, snapshot] = [disk, 'disk@before-upgrade.raw'].map(name => quote(join(folder, name)))

  const width = Math.max(...names.map(name => name.length))
  const rows = names.map(async name => {
    const { size, mtime } = await stat(join(folder, name))
    return `  ${name.padEnd(width)}  ${readable(size).padStart(10)}  ${date(mtime)}`
  })
  const inside =
    image === SAMPLE
      ? `/sbin/debugfs -R 'cat /home/sam/notes.txt' ${snapshot}    # today's disk has lost it`
      : `/sbin/fdisk -l ${file}`
  const whole =
    process.getuid() === 0
      ? image === SAMPLE
        ? `mount -o ro,loop,noload ${snapshot} /mnt; ls /mnt; umount /mnt`
        : `losetup --find --show --partscan --read-only ${file}    # then mount its partitions`
      : `cp --sparse=auto ${file} copy.raw`
  const stats = `cat ${quote(join(folder, '.vimgfs/stats.json'))}`
  console.log(
    [
      `\n${basename(image)} on ${folder}:`,
      ...(await Promise.all(rows)),
      '\nTry in another terminal:',
      ...[inside, whole, stats].map(command => `  ${command}`),
      '\nCtrl-C unmounts.',
    ].join('\n'),
  )
}

function quote(path) {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`
}

function readable(bytes) {
  const power = Math.max(0, Math.min(5, Math.floor(Math.log2(bytes) / 10)))
  return power === 0 ? `${bytes} B` : `${(bytes / 1024 ** power).toFixed(1)} ${' KMGTP'[power]}iB`
}

function date(time) {
  const two = number => String(number).padStart(2, '0')
  const day = [time.getFullYear(), two(time.getMonth() + 1), two(time.getDate())].join('-')
  return `${day} ${two(time.getHours())}:${two(time.getMinutes())}`
}
