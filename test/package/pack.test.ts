/** What npm pack makes is what people install: it must build itself, hold what it needs, and work. */
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { cannotMount, hasMount, ROOT, run, SAMPLE, scratchFolder } from './processes.js'

t.test('a tarball from a clean source installs globally and works', async t => {
  const scratch = scratchFolder(t)
  const source = join(scratch, 'source')
  mkdirSync(source)
  const documents = ['ARCHITECTURE.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'LICENSE', 'README.md']
  const settingFiles = ['package.json', 'package-lock.json', 'tsconfig.json', 'tsconfig.build.json']
  const scripts = ['build', 'bootstrap', 'manual'].map(name => `scripts/${name}.mjs`)
  for (const part of ['src', 'docs', 'share', ...scripts, ...settingFiles, ...documents])
    cpSync(join(ROOT, part), join(source, part), { recursive: true })

  // As README.md says it, without anything installed or built before.
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8')
  const [, install = ''] = readme.split('## Install\n')[1]?.split('```') ?? []
  t.match(install, 'npm install --global')
  const prefix = join(scratch, 'prefix')
  const settings = `npm_config_prefix=${prefix} npm_config_prefer_offline=true`
  const printed = await run('sh', ['-c', `set -e; export ${settings}; ${install}`], source)
  t.ok(printed.split('\n').length < 10, printed)

  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
  const tarball = join(source, `vimgfs-${version}.tgz`)
  const held = (await run('tar', ['-tzf', tarball], scratch)).trim().split('\n')
  const top = new Set(held.map(path => path.split('/')[1]))
  t.same([...top].sort(), [...documents, 'dist', 'docs', 'package.json', 'share'])
  const notCode = held
    .filter(path => path.includes('/dist/') && !/\.(c?js|d\.ts|code)$/.test(path))
    .filter(path => !/^package\/dist\/man\/(mount\.)?vimgfs[-a-z]*\.[158]$/.test(path))
  // It says that main.js is CommonJS.
  t.same(notCode, ['package/dist/cli/package.json'], 'only code, its types and the manual in dist')
  const links = [...readme.matchAll(/\]\(([^)#:]+)\)/g)].map(([, path]) => path)
  t.ok(links.length > 5)
  for (const path of links) t.ok(held.includes(`package/${path}`), `README.md links to ${path}`)

  const vimgfs = join(prefix, 'bin/vimgfs')
  t.match(await run(vimgfs, ['--version'], scratch), version)
  t.match(await run(vimgfs, ['--help'], scratch), 'vimgfs mount')
  t.ok(existsSync(join(prefix, 'share/man/man1/vimgfs-mount.1')), 'npm installs the manual')

  await t.test('is a library, too', async t => {
    const project = join(scratch, 'project')
    mkdirSync(join(project, 'node_modules'), { recursive: true })
    symlinkSync(join(prefix, 'lib/node_modules/vimgfs'), join(project, 'node_modules/vimgfs'))
    copyFileSync(join(ROOT, 'docs/examples/changed.mjs'), join(project, 'changed.mjs'))
    const printed = await run(process.execPath, ['changed.mjs', SAMPLE], project)
    t.match(printed, /^qcow2, [0-9]+ bytes\n(.*: [0-9]+ bytes differ\n){2}$/)
    writeFileSync(
      join(project, 'convert.mjs'),
      `import { compareImages, convertImage } from 'vimgfs'
       const [, , source, target] = process.argv
       await convertImage(source, target, { targetFormat: 'qcow2', compress: true })
       console.log((await compareImages(source, target)).kind)\n`,
    )
    const copy = join(project, 'copy.qcow2')
    t.equal(await run(process.execPath, ['convert.mjs', SAMPLE, copy], project), 'same\n')
    writeFileSync(
      join(project, 'use.mts'),
      `import { convertImage, type OpenImage, openImage } from 'vimgfs'
       const image: OpenImage = await openImage('x', { access: 'write' })
       image.disk.write(Buffer.alloc(1), 0)
       const sizes: number[] = image.snapshots.map(({ sizeBytes }) => sizeBytes)
       // @ts-expect-error: it is no method
       image.disk.nothing()
       await convertImage('x', 'y', { compress: true, options: { compression_type: 'zstd' } })
       // @ts-expect-error: it is no option
       await convertImage('x', 'y', { packed: true })
       export { sizes }\n`,
    )
    const types = join(ROOT, 'node_modules/@types')
    const options = ['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2023']
    const more = ['--types', 'node', '--typeRoots', types, '--skipLibCheck', 'use.mts']
    const tsc = join(ROOT, 'node_modules/typescript/bin/tsc')
    t.equal(await run(process.execPath, [tsc, ...options, ...more], project), '')
  })

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
