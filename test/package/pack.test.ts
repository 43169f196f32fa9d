/** What npm pack makes is what people install: it must build itself, hold what it needs, and work. */
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cannotMount, hasMount, ROOT, run, SAMPLE, scratchFolder } from './processes.js'

t.test('a tarball from a clean source installs globally and works', async t => {
  const scratch = scratchFolder(t)
  const source = join(scratch, 'source')
  mkdirSync(source)
  const documents = ['ARCHITECTURE.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'README.md']
  const parts = ['src', 'docs', 'package.json', 'tsconfig.json', 'tsconfig.build.json']
  for (const part of [...parts, ...documents])
    cpSync(join(ROOT, part), join(source, part), { recursive: true })
  symlinkSync(join(ROOT, 'node_modules'), join(source, 'node_modules'))

  await run('npm', ['pack', '--pack-destination', scratch], source)
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  const tarball = join(scratch, `vimgfs-${version}.tgz`)
  t.ok(existsSync(tarball), 'dist was built on the way')

  const held = (await run('tar', ['-tzf', tarball], scratch)).trim().split('\n')
  const top = new Set(held.map(path => path.split('/')[1]))
  t.same([...top].sort(), [...documents, 'dist', 'docs', 'package.json'])
  const notCode = held.filter(path => path.includes('/dist/') && !path.endsWith('.js'))
  t.same(notCode, [], 'only code in dist')

  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8')
  const links = [...readme.matchAll(/\]\(([^)#:]+)\)/g)].map(([, path]) => path)
  t.ok(links.length > 5)
  for (const path of links) t.ok(held.includes(`package/${path}`), `README.md links to ${path}`)

  // As README.md says it, without anything installed before.
  const [, install = ''] = readme.split('## Install\n')[1]?.split('```') ?? []
  t.match(install, 'npm install --global')
  const prefix = join(scratch, 'prefix')
  rmSync(join(source, 'node_modules'))
  cpSync(join(ROOT, 'package-lock.json'), join(source, 'package-lock.json'))
  const settings = `npm_config_prefix=${prefix} npm_config_prefer_offline=true`
  const printed = await run(
    'sh',
    ['-c', `rm -rf dist; set -e; export ${settings}; ${install}`],
    source,
  )
  t.ok(printed.split('\n').length < 10, printed)
  const vimgfs = join(prefix, 'bin/vimgfs')
  t.match(await run(vimgfs, ['--version'], scratch), version)
  t.match(await run(vimgfs, ['--help'], scratch), 'vimgfs mount')

  await t.test('mounts', { skip: cannotMount() }, async t => {
    const folder = join(scratch, 'mnt')
    mkdirSync(folder)
    // start.test.ts has the sample itself mounted.
    const image = join(scratch, 'disk.qcow2')
    copyFileSync(SAMPLE, image)
    await run(vimgfs, ['mount', image, folder], scratch)
    t.ok(hasMount(folder))
    t.match(await run('ls', [folder], scratch), 'disk.raw')
    await run(vimgfs, ['umount', folder], scratch)
    t.notOk(hasMount(folder), 'and unmounts')
  })
})
