/** What npm pack makes is what people install: it must build itself, hold what it needs, and work. */
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cannotMount, hasMount, ROOT, run, SAMPLE, scratchFolder } from './processes.js'

t.test('a tarball from a clean source installs globally and works', async t => {
  const scratch = scratchFolder(t)
  const source = join(scratch, 'source')
  mkdirSync(source)
  const texts = ['package.json', 'LICENSE', 'README.md', 'tsconfig.json', 'tsconfig.build.json']
  for (const part of ['src', ...texts])
    cpSync(join(ROOT, part), join(source, part), { recursive: true })
  symlinkSync(join(ROOT, 'node_modules'), join(source, 'node_modules'))

  await run('npm', ['pack', '--pack-destination', scratch], source)
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  const tarball = join(scratch, `vimgfs-${version}.tgz`)
  t.ok(existsSync(tarball), 'dist was built on the way')

  const held = (await run('tar', ['-tzf', tarball], scratch)).trim().split('\n')
  const top = new Set(held.map(path => path.split('/')[1]))
  t.same([...top].sort(), ['LICENSE', 'README.md', 'dist', 'package.json'])
  const notCode = held.filter(path => path.includes('/dist/') && !path.endsWith('.js'))
  t.same(notCode, [], 'only code in dist')

  const prefix = join(scratch, 'prefix')
  const install = ['install', '--global', '--prefix', prefix, '--prefer-offline', tarball]
  await run('npm', install, scratch)
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
