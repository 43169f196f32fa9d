/** The candidates that shells offer on Tab, and real shells that ask for them. */
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { candidates } from '../../src/cli/completion/candidates.js'
import { SCRIPTS } from '../../src/cli/completion/scripts.js'
import { MAIN } from '../support/mount.js'
import { attempt, needs, tempFolder } from '../support/run.js'

const machine = {
  tagsOf: async (image: string) => (image === 'disk' || image === '/mnt/x' ? ['one', 'two 2'] : []),
  mountpoints: () => ['/mnt/x'],
  isFile: (name: string) => name === 'disk',
}
const offered = async (...words: string[]) =>
  (await candidates(words, machine)).map(one =>
    'paths' in one ? `:${one.paths} ${one.skip}` : one.word,
  )

t.test('what is offered', async t => {
  const cases: [string[], string[]][] = [
    [['sn'], ['snapshot']],
    [['frobnicate', ''], []],
    [['help', 'me'], ['measure']],
    [
      ['snapshot', ''],
      ['list', 'create', 'delete', 'rename', 'revert'],
    ],
    [
      ['snapshot', 'd'],
      ['delete', ':files 0'],
    ],
    [['snapshot', 'delete', ''], [':files 0']],
    [
      ['snapshot', 'delete', 'disk', ''],
      ['one', 'two 2'],
    ],
    [['snapshot', 'delete', 'disk', 'one', 't'], ['two 2']],
    [['snapshot', 'revert', '/mnt/x', 'o'], ['one']],
    [['snapshot', 'create', 'disk', ''], []],
    [['snapshot', '-d', ''], []],
    [
      ['snapshot', 'list', '--l'],
      ['--list', '--layers'],
    ],
    [['snapshot', 'delete', '--l'], ['--list']],
    [
      ['info', 'disk@'],
      ['disk@one', 'disk@two 2'],
    ],
    [['info', 'other@'], [':files 0']],
    [['diff', 'disk', 'o'], ['one']],
    [['info', 'disk', ''], []],
    [['umount', ''], ['/mnt/x']],
    [['mount', 'disk', ''], [':folders 0']],
    [
      ['mount', '--format', 'q'],
      ['qcow', 'qcow2'],
    ],
    [
      ['mount', '--format=q'],
      ['--format=qcow', '--format=qcow2'],
    ],
    [['mount', '--allow-path', ''], [':folders 0']],
    [['mount', '--allow-path=x'], [':folders 13']],
    [['mount', '--threads', ''], []],
    [['mount', '-o', 'ro,par'], ['ro,partitions']],
    [
      ['mount', '-o', 'passthrough=o'],
      ['passthrough=on', 'passthrough=off'],
    ],
    [['mount', '-o', 'ro,scratch=x'], [':files 11']],
    [['mount', '-qo', 'growa'], ['growable']],
    [['mount', '-q', '--qui'], []],
    [['mount', '--', '-'], [':files 0']],
    [['convert', '-O', 'vm'], ['vmdk']],
    [['convert', '-Ovmdk', '-o', 'subformat=stream'], ['subformat=streamOptimized']],
    [['create', '-f', 'qcow2', '-o', 'lazy'], ['lazy_refcounts=']],
    [
      ['create', '-f', 'qcow2', '-o', 'lazy_refcounts='],
      ['lazy_refcounts=on', 'lazy_refcounts=off'],
    ],
    [
      ['compare', '-T', 'write'],
      ['writeback', 'writethrough'],
    ],
    [['convert', 'disk@o'], ['disk@one']],
  ]
  for (const [words, expected] of cases) t.same(await offered(...words), expected, words.join(' '))
})

const SAMPLE = fileURLToPath(new URL('../../samples/disk.qcow2', import.meta.url))

/** Command lines up to Tab, and the words that the command then gets. */
const TYPED: [string, string[]][] = [
  [
    'vimgfs snapshot delete disk.qcow2 be\t',
    ['snapshot', 'delete', 'disk.qcow2', 'before-upgrade'],
  ],
  ['vimgfs info --output=js\t disk.qcow2', ['info', '--output=json', 'disk.qcow2']],
  ['vimgfs info disk.qcow2@fr\t', ['info', 'disk.qcow2@fresh-install']],
  ['vimgfs compare my\\ disk@fr\t dis\t', ['compare', 'my disk@fresh-install', 'disk.qcow2']],
  ['vimgfs mount -o ro,parti\t my\t a\t', ['mount', '-o', 'ro,partitions', 'my disk', 'a dir']],
  [
    'vimgfs convert -O vmdk -o subformat=stre\t',
    ['convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized'],
  ],
  ['vimgfs mount --allow-path=a\t', ['mount', '--allow-path=a dir']],
]

/** A function of the shell in place of the command: it completes with what is built here, and shows its words. */
const FUNCTION = `vimgfs() {
  if [ "$1" = complete ] || [ "$1" = completion ]; then '${process.execPath}' '${MAIN}' "$@"
  else printf 'GOT'; printf ' <%s>' "$@"; echo; fi
}`

/** Returns a folder with files that the lines name. */
function folderOfFiles(t: Test): string {
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'a dir'))
  for (const name of ['disk.qcow2', 'my disk']) copyFileSync(SAMPLE, join(folder, name))
  return folder
}

/** Types the lines into a shell on a terminal. Returns the words that the command got each time. */
async function type(shell: string, folder: string, env: NodeJS.ProcessEnv): Promise<string[]> {
  const input = [...TYPED.map(([line]) => line), 'exit', ''].join('\n')
  const { stdout } = await attempt('script', ['-qec', shell, '/dev/null'], {
    cwd: folder,
    env: { TERM: 'dumb', HISTFILE: '/dev/null', ...env },
    input,
  })
  return [...stdout.matchAll(/^GOT( <.*>)/gm)].map(([, words = '']) => words)
}

const EXPECTED = TYPED.map(([, words]) => words.map(word => ` <${word}>`).join(''))
/** Bash shows that a folder may be completed further. */
const withoutSlash = (lines: string[]) => lines.map(line => line.replaceAll('/>', '>'))

t.test('bash', needs('script'), async t => {
  const folder = folderOfFiles(t)
  const settings = `${FUNCTION}\nsource <(vimgfs completion bash)\nbind 'set bell-style none'\n`
  writeFileSync(join(folder, '.rc'), settings)
  const words = await type(`bash --noprofile --rcfile .rc -i`, folder, {})
  t.same(withoutSlash(words), EXPECTED)
})

t.test('zsh', needs('script', 'zsh'), async t => {
  const folder = folderOfFiles(t)
  const settings = `${FUNCTION}\nautoload -Uz compinit && compinit -u -D\nsource <(vimgfs completion zsh)\n`
  writeFileSync(join(folder, '.zshrc'), settings)
  t.same(withoutSlash(await type('zsh -i', folder, { ZDOTDIR: folder })), EXPECTED)
})

t.test('fish', needs('fish'), async t => {
  const folder = folderOfFiles(t)
  const quoted = (text: string) => `'${text.replaceAll('\\', '\\\\')}'`
  const lines = TYPED.flatMap(([line]) => line.split('\t').slice(0, 1))
  writeFileSync(
    join(folder, 'rc.fish'),
    [
      `function vimgfs; '${process.execPath}' '${MAIN}' $argv; end`,
      'vimgfs completion fish | source',
      ...lines.map(line => `echo ">" (complete -C ${quoted(line)} | string split \\t)[1]`),
    ].join('\n'),
  )
  const { stdout } = await attempt('fish', ['--no-config', 'rc.fish'], { cwd: folder })
  const completed = stdout.split('\n').filter(line => line.startsWith('> '))
  const last = ['before-upgrade', '--output=json', 'disk.qcow2@fresh-install']
  const more = ['my disk@fresh-install', 'ro,partitions', 'subformat=streamOptimized']
  t.same(
    completed,
    [...last, ...more, '--allow-path=a dir/'].map(word => `> ${word}`),
  )
})

t.test('the scripts name no option: they ask the command', async t => {
  for (const script of Object.values(SCRIPTS)) t.notMatch(script, 'passphrase')
})
