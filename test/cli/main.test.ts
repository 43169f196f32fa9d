/** The command line itself: help, versions, wrong usage. */
import { readFileSync } from 'node:fs'
import t from 'tap'
import {
  attemptIn,
  HERE,
  isRoot,
  MAIN,
  mountFolder,
  NO_LOG,
  noFuse,
  sampleImage,
  launched,
} from '../support/mount.js'
import { tempFolder } from '../support/run.js'

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))
const COMMANDS = ['mount', 'umount', 'check', 'info', 'help']

t.test('help', async t => {
  for (const args of [['--help'], ['-h'], ['help']]) {
    const { code, stdout, stderr } = await launched(HERE, args)
    t.equal(code, 0)
    t.equal(stderr, '')
    for (const command of COMMANDS) t.match(stdout, new RegExp(`^  ${command} `, 'm'), command)
    t.match(stdout, /^Example: vimgfs mount /m)
  }
})

t.test('help of each command, with an example', async t => {
  for (const command of COMMANDS) {
    const texts = []
    for (const args of [
      ['help', command],
      [command, '--help'],
      [command, '-h'],
    ]) {
      const { code, stdout, stderr } = await launched(HERE, args)
      t.equal(code, 0, args.join(' '))
      t.equal(stderr, '')
      texts.push(stdout)
    }
    t.equal(new Set(texts).size, 1, 'the same text')
    t.match(texts[0], new RegExp(`^Usage: vimgfs ${command}.*\\n`))
    t.match(texts[0], new RegExp(`^Example:\\n  vimgfs ${command} `, 'm'))
    const tooLong = texts[0]!.split('\n').filter(line => line.length > 80)
    t.same(tooLong, [], 'fits a terminal')
  }
})

t.test('the help of mount names all of its options', async t => {
  const { stdout } = await launched(HERE, ['help', 'mount'])
  for (const option of [
    ...['allow_root', 'allow_other', 'default_permissions', 'uid=', 'gid=', 'umask=', 'fsname='],
    ...['--foreground', '--format', '--threads', '--metadata-cache', '--allow-path', '--max-chain'],
    ...['rw ', 'force-share', 'growable', 'commit='],
    ...['--log-level', '--log-file', '--quiet', 'user_allow_other'],
  ]) {
    t.match(stdout, option)
  }
})

t.test('version', async t => {
  for (const option of ['--version', '-V']) {
    const { code, stdout } = await launched(HERE, [option])
    t.equal(code, 0)
    const [first, second] = stdout.split('\n')
    t.equal(first, `vimgfs ${version}`)
    // Without the right to mount, even in a user namespace, nobody learns the version of FUSE.
    const fuse = isRoot ? '7\\.[0-9]+' : '.+'
    t.match(second, new RegExp(`^Node ${process.version}, Linux \\S+ \\S+, FUSE ${fuse}$`))
  }
})

t.test('no command at all: the help, as an error', async t => {
  const { code, stdout, stderr } = await launched(HERE, [])
  t.equal(code, 2)
  t.equal(stdout, '')
  t.match(stderr, 'Usage: vimgfs COMMAND')
})

t.test('wrong usage: one line, exit code 2', async t => {
  const cases: [string[], RegExp][] = [
    [['lsit'], /there is no command "lsit"; did you mean list\?; vimgfs --help lists them/],
    [['frobnicate'], /there is no command "frobnicate"; vimgfs --help lists them/],
    [['constructor'], /there is no command "constructor"/],
    [['--frobnicate'], /there is no command "--frobnicate"/],
    [['a\nb'], /there is no command "a\\x0ab"/],
    [['help', 'frobnicate'], /there is no command "frobnicate"/],
    [['help', '__proto__'], /there is no command "__proto__"/],
    [['mount'], /IMAGE and MOUNTPOINT are missing; vimgfs help mount shows how/],
    [['help', 'mount', 'umount'], /"umount" is one argument too many/],
    [['mount', 'disk.qcow2'], /MOUNTPOINT is missing/],
    [['mount', 'a', 'b', 'c'], /"c" is one argument too many/],
    [['mount', '--no-such', 'a', 'b'], /Unknown option '--no-such'; .*vimgfs help mount/],
    [['mount', 'a', 'b', '-o'], /-o.*argument missing; vimgfs help mount/],
    [['mount', '--threads', '-1', 'a', 'b'], /--threads.*ambiguous; vimgfs help mount/],
    [['umount'], /MOUNTPOINT is missing; vimgfs help umount/],
    [['umount', '--all', 'a'], /names and --all exclude each other/],
    [['list', 'a'], /"a" is one argument too many/],
    [['stats', '--watch', '0', 'a'], /--watch takes seconds/],
    [['mount', '--tread', '1', 'a', 'b'], /Unknown option '--tread'; did you mean --threads\?/],
    [['umount', '--force', 'a'], /Unknown option '--force'; vimgfs help umount/],
  ]
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await launched(HERE, args)
    t.equal(code, 2, args.join(' '))
    t.equal(stdout, '')
    t.match(stderr, message)
    t.match(stderr, /^vimgfs: [^\n]*\n$/, 'one line')
  }
})

t.test('in a folder that has been deleted', async t => {
  const cwd = tempFolder(t)
  const inDeleted = (...words: string[]) => {
    const script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" "$@"'
    return attemptIn(HERE, 'sh', ['-c', script, process.execPath, MAIN, ...words], { cwd })
  }
  const { code, stderr } = await inDeleted('info', 'disk.qcow2')
  t.equal(code, 1)
  t.match(stderr, /^vimgfs: the current folder has been deleted; [^\n]* absolute names\n$/)
  const image = sampleImage(t)
  t.equal((await inDeleted('info', image)).code, 0, 'absolute names work')
  await t.test('mount and umount', noFuse(), async t => {
    const folder = mountFolder(t)
    const mounted = await inDeleted('mount', ...NO_LOG, image, folder)
    t.equal(mounted.code, 0, mounted.stderr)
    t.equal((await inDeleted('umount', folder)).code, 0)
  })
})
