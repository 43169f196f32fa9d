/** What an image may name, and what it may not. */
import {
  closeSync,
  mkdirSync,
  readFileSync,
  realpathSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { basename, join } from 'node:path'
import t from 'tap'
import { oneLine } from '../../src/errors.js'
import { closeFolders, isWithin } from '../../src/io/folders.js'
import { openGiven, openImage, openNamed } from '../../src/io/named-file.js'
import { holding } from '../support/folders.js'
import { run, tempFolder } from '../support/run.js'

/** folder/{image,beside,below/deep,link-in,link-out,…} and outside/secret. */
async function scene(t: Parameters<typeof tempFolder>[0]) {
  const folder = tempFolder(t)
  const outside = tempFolder(t)
  for (const name of ['image', 'beside', 'a:b']) writeFileSync(join(folder, name), name)
  mkdirSync(join(folder, 'below'))
  writeFileSync(join(folder, 'below', 'deep'), 'deep')
  writeFileSync(join(outside, 'secret'), 'secret')
  symlinkSync(join(folder, 'beside'), join(folder, 'link-in'))
  symlinkSync(join(outside, 'secret'), join(folder, 'link-out'))
  symlinkSync(outside, join(folder, 'folder-out'))
  symlinkSync('loop', join(folder, 'loop'))
  symlinkSync('/dev/null', join(folder, 'device'))
  await run('mkfifo', [join(folder, 'fifo')])
  const server = createServer().listen(join(folder, 'socket'))
  await new Promise(resolve => server.once('listening', resolve))
  t.teardown(() => new Promise(resolve => server.close(resolve)))
  return { folder, outside, image: join(folder, 'image') }
}

/** The own folders of an image, as bytes in latin1. */
function foldersOf(image: string): string[] {
  const { fd, folders, own } = openImage(image, 'read', [])
  closeSync(fd)
  closeFolders(folders)
  return own.map(({ path }) => path)
}

t.test('what an image names', async t => {
  const { folder, outside, image } = await scene(t)
  const open = (name: string, folders = [folder]) =>
    holding(folders, allowed => {
      const { path, fd } = openNamed(name, {
        by: image,
        role: 'backing file',
        allowed,
        hint: file => `put ${file} there`,
      })
      const text = readFileSync(fd, 'utf8')
      closeSync(fd)
      return { path, text }
    })
  const good = [
    { name: 'beside', text: 'beside' },
    { name: './beside', text: 'beside' },
    { name: 'below/deep', text: 'deep' },
    { name: 'below/../beside', text: 'beside' },
    { name: `../${basename(folder)}/beside`, text: 'beside' },
    { name: join(folder, 'beside'), text: 'beside' },
    { name: `file:${join(folder, 'beside')}`, text: 'beside' },
    { name: 'file:beside', text: 'beside' },
    { name: 'link-in', text: 'beside' },
    { name: './a:b', text: 'a:b' },
  ]
  for (const { name, text } of good) {
    t.test(name, async t => t.equal(open(name).text, text))
  }
  const refused = [
    { name: 'nowhere', code: 'MISSING', says: /no such file/ },
    { name: 'beside/x', code: 'MISSING', says: /not a folder/ },
    { name: 'loop', code: 'MISSING', says: /too many symbolic links/ },
    { name: 'x'.repeat(300), code: 'MISSING', says: /name is too long/ },
    {
      name: '/etc/shadow',
      code: 'REFUSED',
      says: /outside the image's folder; allow it with --allow-path \/etc/,
    },
    { name: '../../etc/passwd'.padStart(60, '../'), code: 'REFUSED', says: /outside/ },
    { name: join(outside, 'secret'), code: 'REFUSED', says: /outside/ },
    { name: 'link-out', code: 'REFUSED', says: /outside/ },
    { name: 'folder-out/secret', code: 'REFUSED', says: /outside/ },
    { name: 'device', code: 'REFUSED', says: /outside/ },
    { name: 'fifo', code: 'REFUSED', says: /a FIFO/ },
    { name: 'socket', code: 'REFUSED', says: /a socket/ },
    { name: 'below', code: 'REFUSED', says: /a folder/ },
    { name: '.', code: 'REFUSED', says: /a folder/ },
    { name: '', code: 'REFUSED', says: /no file name/ },
    { name: 'file:', code: 'REFUSED', says: /no file name/ },
    { name: 'beside\0', code: 'REFUSED', says: /no file name/ },
    {
      name: 'json:{"driver":"file","filename":"/etc/shadow"}',
      code: 'UNSUPPORTED',
      says: /a protocol/,
    },
    { name: 'nbd://localhost/x', code: 'REFUSED', says: /not on this machine/ },
    { name: 'nbd:unix:/run/x', code: 'UNSUPPORTED', says: /a protocol/ },
    { name: 'http://localhost/x', code: 'REFUSED', says: /not on this machine/ },
    { name: 'fat:/etc', code: 'UNSUPPORTED', says: /a protocol/ },
    { name: 'a:b', code: 'UNSUPPORTED', says: /a protocol/ },
    // After it all is a path.
    { name: 'file:json:{}', code: 'MISSING', says: /no such file/ },
  ]
  for (const { name, code, says } of refused) {
    t.test(JSON.stringify(name).slice(0, 60), async t => {
      try {
        open(name)
        t.fail('it was opened')
      } catch (error) {
        t.match(error, { name: 'ImageError', code })
        const line = oneLine(error as Error)
        t.match(line, says)
        t.ok(line.startsWith(`${image}: its backing file `), 'names who named it')
        t.match(line, /; \w/, 'says what to do')
      }
    })
  }
  t.test('devices are no files, wherever they are', async t => {
    const anywhere = ['/']
    t.throws(() => open('/dev/null', anywhere), { code: 'REFUSED', message: /character device/ })
    t.equal(open(join(outside, 'secret'), anywhere).text, 'secret')
  })
  t.test('a folder that was allowed', async t => {
    const wider = [folder, outside]
    t.equal(open(join(outside, 'secret'), wider).text, 'secret')
    t.equal(open('link-out', wider).text, 'secret')
    const missing = [outside, join(folder, 'nowhere')]
    t.throws(() => openImage(image, 'read', missing), {
      code: 'MISSING',
      context: { path: missing[1] as string },
    })
  })
  t.test('a path is kept as it was named', async t => {
    t.equal(open('link-in').path, join(folder, 'link-in'))
  })
})

t.test('what the user names', async t => {
  const { folder, outside, image } = await scene(t)
  const refused = [
    { name: 'nowhere', code: 'MISSING' },
    { name: 'below', code: 'REFUSED' },
    { name: 'fifo', code: 'REFUSED' },
    { name: 'socket', code: 'REFUSED' },
    { name: 'device', code: 'REFUSED' },
  ]
  for (const { name, code } of refused) {
    t.throws(() => openGiven(join(folder, name)), { code, context: { path: join(folder, name) } })
  }
  t.throws(() => openGiven('a\0b'), { name: 'ImageError' })
  const { fd, path } = openGiven(join(folder, 'link-out'))
  closeSync(fd)
  t.equal(path, join(folder, 'link-out'), 'links lead where the user wants')
  const both = foldersOf(join(folder, 'link-out'))
  t.same(
    both,
    [folder, outside].map(each => realpathSync(each)),
    'both of its folders are its own',
  )
  t.same(foldersOf(image), [realpathSync(folder)])
})

t.test('within', async t => {
  t.ok(isWithin('/a/b', '/a'))
  t.ok(isWithin('/a/..b', '/a'))
  t.ok(isWithin('/a', '/'))
  t.notOk(isWithin('/ab', '/a'))
  t.notOk(isWithin('/', '/a'))
})

t.test('names that are not UTF-8: no other file is taken for them', async t => {
  const { folder, image } = await scene(t)
  const bytes = (name: string) => Buffer.from(join(folder, name), 'latin1')
  // U+FFFD, which the first is shown as, is the name of the second.
  writeFileSync(bytes('b\xff'), 'right')
  writeFileSync(bytes('b\xef\xbf\xbd'), 'wrong')
  symlinkSync(bytes('b\xff'), join(folder, 'link'))
  const asNodeHasIt = bytes('b\xff').toString()
  const not = { code: 'UNSUPPORTED', message: /not UTF-8/ }
  t.throws(() => openGiven(asNodeHasIt), not)
  const openFrom = (name: string) =>
    holding([folder], allowed =>
      openNamed(name, {
        by: image,
        role: 'backing file',
        allowed,
        hint: file => `put ${file} there`,
      }),
    )
  t.throws(() => openFrom(basename(asNodeHasIt)), not)
  for (const { fd } of [openGiven(join(folder, 'link')), openFrom('link')]) {
    t.equal(readFileSync(fd, 'utf8'), 'right', 'a link helps')
    closeSync(fd)
  }

  mkdirSync(bytes('d\xff'))
  writeFileSync(bytes('d\xff/disk'), '')
  symlinkSync(bytes('d\xff/disk'), join(folder, 'link-there'))
  t.same(foldersOf(join(folder, 'link-there')), [
    realpathSync(folder),
    join(realpathSync(folder), 'd\xff'),
  ])
})
