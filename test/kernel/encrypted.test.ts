/** Mounts encrypted images: the bytes as QEMU decrypts them, all sources of passphrases, and no trace of a passphrase. */
import { spawn } from 'node:child_process'
import {
  chmodSync,
  closeSync,
  copyFileSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  asQemuNames,
  creating,
  decrypted,
  type EncryptedImage,
  encryptedIo,
  makeEncrypted,
  takeSnapshot,
} from '../peers/encrypted.js'
import {
  HERE,
  isMounted,
  isRoot,
  kill,
  MAIN,
  mount,
  launched,
  mountFolder,
  NO_LOG,
  noFuse,
  ordinaryUser,
  type Place,
  READ_ONLY,
  runIn,
  serversOf,
  sharedFolder,
  until,
  vimgfs,
} from '../support/mount.js'
import { needs, run } from '../support/run.js'
import { sha256 } from './images.js'

const M = 2 ** 20
const SIZE = 8 * M + 3584
const PASSPHRASE = 'correct-horse-7'
const skip = { ...needs('qemu-img', 'qemu-io', 'script'), ...noFuse() }
/** Lasts as long as all tests of this file. */
const file = t
const plain = { env: { VIMGFS_PASSPHRASE_FILE: '' } }

interface Made extends EncryptedImage {
  readonly folder: string
  readonly passphraseFile: string
}

/** QEMU's images, by format and method: it takes seconds of a processor to make a LUKS header. */
const made = new Map<string, Promise<string>>()

async function madeBy(t: Test, format: 'qcow' | 'qcow2', method: 'luks' | 'aes'): Promise<string> {
  const image = { file: join(sharedFolder(t), `disk.${format}`), format, passphrase: PASSPHRASE }
  await makeEncrypted(image, SIZE, { format: method })
  await encryptedIo(image, ['write -P 0x11 0 1M', 'write -P 0x22 1500000 300000'])
  if (format === 'qcow2') {
    await takeSnapshot(image, 'one')
    await encryptedIo(image, ['write -P 0x33 500000 700000', 'write -z 1M 64k'])
  }
  chmodSync(image.file, 0o666)
  return image.file
}

async function makeImage(
  t: Test,
  format: 'qcow' | 'qcow2' = 'qcow2',
  method: 'luks' | 'aes' = 'luks',
): Promise<Made> {
  const folder = sharedFolder(t)
  const kind = `${format}, ${method}`
  const original = made.get(kind) ?? madeBy(file, format, method)
  made.set(kind, original)
  const image = { file: join(folder, `disk.${format}`), format, passphrase: PASSPHRASE }
  // Keeps its mode.
  copyFileSync(await original, image.file)
  const passphraseFile = join(folder, 'passphrase')
  writeFileSync(passphraseFile, `${PASSPHRASE}\n`)
  chmodSync(passphraseFile, 0o644)
  return { ...image, folder, passphraseFile }
}

async function sameFiles(t: Test, image: Made, mnt: string, place: Place): Promise<void> {
  const same = async (name: string, snapshot?: string) => {
    const raw = await decrypted(image, image.folder, snapshot)
    const [sum] = (await runIn(place, 'sha256sum', [join(mnt, name)])).split(' ')
    t.equal(sum, sha256(readFileSync(raw)), name)
    rmSync(raw)
  }
  await same('disk.raw')
  if (image.format === 'qcow2') await same('disk@one.raw', 'one')
}

for (const [format, method] of [
  ['qcow2', 'luks'],
  ['qcow2', 'aes'],
  ['qcow', 'aes'],
] as const) {
  t.test(`${format}, ${method}: read, written, read again`, skip, async t => {
    const image = await makeImage(t, format, method)
    // Permissions do not depend on the format.
    const withUser = isRoot && method === 'luks'
    for (const place of withUser ? [HERE, await ordinaryUser(t)] : [HERE]) {
      await t.test(place.name, async t => {
        const args = ['--passphrase-file', image.passphraseFile]
        const mounted = await mount(t, image.file, { place, args })
        const mnt = mounted.folder
        const disk = join(mnt, 'disk.raw')
        if (method === 'aes') t.match(mounted.printed.stderr, /cannot tell a wrong passphrase/)
        else t.equal(mounted.printed.stderr, '')
        const write = (bytes: number, seek: number) =>
          runIn(place, 'dd', [
            ...['if=/dev/urandom', `of=${disk}`, 'conv=notrunc', 'oflag=seek_bytes'],
            ...[`bs=${bytes}`, 'count=1', `seek=${seek}`],
          ])
        // Cover new and old clusters, whole sectors and parts of them, and a disk that ends within a cluster.
        for (const [bytes, seek] of [
          [200_000, 5 * M],
          [65536, 65536],
          [777, 1_234_567],
          [1, 4 * M + 511],
          [100, SIZE - 100],
        ] as const) {
          await write(bytes, seek)
        }
        await runIn(place, 'fallocate', ['-p', '-o', '100000', '-l', '300000', disk])
        const [sum] = (await runIn(place, 'sha256sum', [disk])).split(' ')
        const ended = await vimgfs(place, ['umount', mnt])
        t.equal(ended.code, 0, ended.stderr)
        const raw = await decrypted(image, image.folder)
        t.equal(sum, sha256(readFileSync(raw)), 'QEMU reads what was written')
        rmSync(raw)
        const again = await mount(t, image.file, { place, args: [...READ_ONLY, ...args] })
        await sameFiles(t, image, again.folder, place)
        if (format === 'qcow2') await run('qemu-img', ['check', '-q', ...asQemuNames(image)])
      })
    }
  })
}

t.test('each encrypted layer of a chain asks for its passphrase', skip, async t => {
  const folder = sharedFolder(t)
  const base = {
    file: join(folder, 'base.qcow'),
    format: 'qcow',
    passphrase: 'of-the-base',
  } as const
  await makeEncrypted(base, SIZE, { format: 'aes' })
  await encryptedIo(base, ['write -P 0x41 0 3M'])
  const plainFile = join(folder, 'plain.qcow2')
  await run('qemu-img', [
    ...['create', '-q', '-f', 'qcow2', '-b', 'base.qcow', '-F', 'qcow', plainFile],
    String(SIZE),
  ])
  const top = {
    file: join(folder, 'top.qcow2'),
    format: 'qcow2',
    passphrase: 'of-the-top',
  } as const
  await makeEncrypted(
    top,
    SIZE,
    { format: 'luks' },
    { more: ['-u', '-b', 'plain.qcow2', '-F', 'qcow2'] },
  )
  writeFileSync(join(folder, '1'), 'of-the-top\n')
  writeFileSync(join(folder, '2'), 'of-the-base\n')
  const files = ['1', '2'].flatMap(name => ['--passphrase-file', join(folder, name)])
  const { folder: mnt, place } = await mount(t, top.file, { args: files })
  t.strictSame(readdirSync(mnt).sort(), ['top.raw', 'top@base.raw', 'top@plain.raw'])
  const disk = join(mnt, 'top.raw')
  await runIn(place, 'dd', [
    'if=/dev/zero',
    `of=${disk}`,
    'conv=notrunc',
    'bs=1000',
    'count=1',
    'seek=2000',
  ])
  const expected = Buffer.alloc(SIZE)
  expected.fill(0x41, 0, 3 * M).fill(0, 2_000_000, 2_001_000)
  t.ok(readFileSync(disk).equals(expected), 'what was written over what lies two layers below')
  expected.fill(0x41, 2_000_000, 2_001_000)
  t.ok(readFileSync(join(mnt, 'top@base.raw')).equals(expected))
  t.equal((await vimgfs(place, ['umount', mnt])).code, 0)
  const swapped = ['2', '1'].flatMap(name => ['--passphrase-file', join(folder, name)])
  await refused(t, top.file, swapped, /top\.qcow2: the passphrase is wrong/)
})

let mounts = 0

async function refused(
  t: Test,
  file: string,
  args: readonly string[],
  message: RegExp,
  options: { input?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<void> {
  const mnt = mountFolder(t)
  // Alternate between background and foreground.
  for (const front of [mounts++ % 2 === 0 ? [] : ['--foreground']]) {
    const { code, stderr } = await vimgfs(
      HERE,
      ['mount', ...NO_LOG, ...front, ...args, file, mnt],
      { ...plain, ...options },
    )
    t.equal(code, 1)
    t.match(stderr, message)
    t.equal(stderr.split('\n').length, 2, `one line: ${stderr}`)
    t.notOk(await isMounted(HERE, mnt))
  }
}

t.test('passphrases that are wrong or missing', skip, async t => {
  const { file, folder } = await makeImage(t)
  const wrong = join(folder, 'wrong')
  writeFileSync(wrong, 'correct-horse-8\n')
  await refused(t, file, ['--passphrase-file', wrong], /the passphrase is wrong/)
  await refused(t, file, ['--passphrase-file', '-'], /the passphrase is wrong/, { input: 'no' })
  await refused(t, file, ['--passphrase-file', '-'], /the passphrase is empty/, { input: '' })
  await refused(t, file, ['--passphrase-file', folder], /cannot be read: it is a folder/)
  await refused(t, file, ['--passphrase-file', join(folder, 'x')], /x cannot be opened: no such/)
  await refused(t, file, [], /it is encrypted; name a file .* --passphrase-file/)
})

t.test('from standard input, and from the file that the environment names', skip, async t => {
  const image = await makeImage(t)
  const { file, passphraseFile } = image
  const mounted = async (args: string[], options: { input?: string; env?: NodeJS.ProcessEnv }) => {
    const mnt = mountFolder(t)
    const printed = await vimgfs(
      HERE,
      ['mount', ...NO_LOG, ...READ_ONLY, ...args, file, mnt],
      options,
    )
    t.equal(printed.code, 0, printed.stderr)
    await sameFiles(t, image, mnt, HERE)
    t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)
  }
  await mounted(['--passphrase-file', '-'], { ...plain, input: `${PASSPHRASE}\n` })
  await mounted([], { env: { VIMGFS_PASSPHRASE_FILE: passphraseFile } })
})

/** Runs a mount on a terminal of its own and types each line once it is asked for. */
function onTerminal(args: readonly string[], typed: readonly string[]) {
  const words = [process.execPath, MAIN, 'mount', ...NO_LOG, ...args]
  const command = words.map(word => `'${word}'`).join(' ')
  const child = spawn('script', ['--quiet', '--return', '--command', command, '/dev/null'], {
    env: { ...process.env, NODE_OPTIONS: '', ...plain.env },
  })
  let shown = ''
  let answered = 0
  child.stdout.on('data', part => {
    shown += part
    const asked = shown.split(/(?:Passphrase of [^\n]*|The same again): /).length - 1
    if (asked <= answered) return
    child.stdin.write(typed[answered] ?? '\r')
    answered = asked
  })
  const ended = new Promise<{ code: number; shown: string }>(resolve => {
    child.once('close', code => resolve({ code: code ?? -1, shown }))
  })
  return { shown: () => shown, ended }
}

t.test('from the terminal, without echo', skip, async t => {
  const { file } = await makeImage(t)
  const mnt = mountFolder(t)
  for (const [front, typed, code] of [
    [[], `${PASSPHRASE}\r`, 0],
    [[], 'nonsense\r', 1],
    [['--foreground'], '\r', 1],
    [[], '\x03', 1],
    // Erase mistyped characters, one by one and all at once.
    [[], `wrong\x15corr\u00e9\x7fect-horse-7\r`, 0],
    [[], ['nonsense\r', 'nonsense\r', `${PASSPHRASE}\r`], 0],
    [[], ['nonsense\r', 'nonsense\r', 'nonsense\r', `${PASSPHRASE}\r`], 1],
  ] as const) {
    const lines = typeof typed === 'string' ? [typed] : typed
    const { code: ended, shown } = await onTerminal([...front, file, mnt], lines).ended
    t.equal(ended, code, shown)
    t.match(shown, /Passphrase of .*disk\.qcow2: \r?\n/)
    t.notMatch(shown, /horse|nonsense/, 'nothing is shown')
    t.equal(await isMounted(HERE, mnt), code === 0)
    if (code === 0) t.equal((await vimgfs(HERE, ['umount', mnt])).code, 0)
  }
})

t.test('a command that asks can be interrupted', skip, async t => {
  const { file, folder } = await makeImage(t)
  const fifo = join(folder, 'fifo')
  await run('mkfifo', [fifo])
  const held = openSync(fifo, 'r+')
  t.teardown(() => closeSync(held))
  const waits = (pid: number) => {
    try {
      const fds = readdirSync(`/proc/${pid}/fd`)
      return fds.some(fd => readlinkSync(`/proc/${pid}/fd/${fd}`) === fifo)
    } catch {
      return false
    }
  }
  const mnt = mountFolder(t)
  for (const front of [[], ['--foreground']]) {
    const signals = ['SIGTERM', 'SIGHUP', 'SIGINT'] as const
    for (const signal of front.length === 0 ? signals : signals.slice(0, 1)) {
      const title = `${signal} ${front}`
      const waiting = launched(
        HERE,
        ['mount', ...NO_LOG, ...front, '--passphrase-file', fifo, file, mnt],
        plain,
      )
      t.ok(await until(() => serversOf(mnt).some(waits)), title)
      // The process that reads the terminal is the one that the user started.
      kill(serversOf(mnt).find(waits) as number, signal)
      const { code, stderr } = await waiting
      t.same([code, stderr], [1, 'vimgfs: interrupted; nothing is mounted\n'], title)
      t.ok(await until(() => serversOf(mnt).length === 0), 'and nobody is left')
    }
    const terminal = onTerminal([...front, file, mnt], [''])
    t.ok(await until(() => terminal.shown().includes('Passphrase of')))
    kill(Math.min(...serversOf(mnt)), 'SIGTERM')
    const { shown } = await terminal.ended
    t.match(shown, /interrupted; nothing is mounted/)
    t.ok(await until(() => serversOf(mnt).length === 0))
  }
  t.notOk(await isMounted(HERE, mnt))
})

t.test('legacy AES, which cannot check a passphrase, asks for it twice', skip, async t => {
  const image = await makeImage(t, 'qcow', 'aes')
  const mnt = mountFolder(t)
  const differing = await onTerminal([image.file, mnt], [`${PASSPHRASE}\r`, 'other\r']).ended
  t.equal(differing.code, 1)
  t.match(differing.shown, /the two passphrases differ/)
  const twice = [`${PASSPHRASE}\r`, `${PASSPHRASE}\r`]
  const same = await onTerminal([...READ_ONLY, image.file, mnt], twice).ended
  t.equal(same.code, 0, same.shown)
  await sameFiles(t, image, mnt, HERE)
})

t.test('the passphrase leaves no trace', skip, async t => {
  const { file, passphraseFile } = await makeImage(t)
  const args = ['--passphrase-file', passphraseFile, '--log-level', 'trace']
  const mounted = await mount(t, file, { args })
  const { pid, folder } = mounted
  const proc = (name: string) => readFileSync(`/proc/${pid}/${name}`, 'latin1')
  const control = (name: string) => readFileSync(join(folder, '.vimgfs', name), 'utf8')
  const places = {
    environment: proc('environ'),
    arguments: proc('cmdline'),
    log: mounted.log(),
    status: control('status.json'),
    stats: control('stats.json'),
    output: mounted.printed.stdout + mounted.printed.stderr,
  }
  for (const [name, text] of Object.entries(places)) {
    t.notMatch(text, new RegExp(PASSPHRASE), name)
  }
  t.match(places.status, /"encryption": ?"LUKS"/)
})

t.test('a raw LUKS container is shown undecrypted', skip, async t => {
  const folder = sharedFolder(t)
  const file = join(folder, 'disk.img')
  await creating([
    ...['create', '-q', '-f', 'luks', '--object', 'secret,id=s,data=x'],
    ...['-o', 'key-secret=s,iter-time=10', file, '1M'],
  ])
  const { folder: mnt } = await mount(t, file, { args: READ_ONLY })
  t.ok(readFileSync(join(mnt, 'disk.raw')).equals(readFileSync(file)))
})
