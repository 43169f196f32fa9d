/** Images on a server in real mounts, and by the commands: bytes as qemu-img has them. */
import fs from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { noise } from '../fixtures/model.js'
import { attemptIn, HERE, isMounted, mount, noFuse, vimgfs } from '../support/mount.js'
import { needs, run, tempFolder } from '../support/run.js'
import { Web } from './web.js'

const NEEDS = noFuse().skip ? noFuse() : needs('qemu-img', 'qemu-io')
const MIB = 2 ** 20

interface Served {
  readonly web: Web
  readonly folder: string
  readonly args: readonly string[]
}

/** Serves top.qcow2 on base.qcow2, whose clusters are compressed. */
async function serve(t: Test): Promise<Served> {
  const folder = tempFolder(t)
  const raw = join(folder, 'disk.raw')
  fs.writeFileSync(raw, noise(6 * MIB, 3))
  fs.truncateSync(raw, 16 * MIB)
  const [base, top] = [join(folder, 'base.qcow2'), join(folder, 'top.qcow2')]
  await run('qemu-img', ['convert', '-c', '-O', 'qcow2', raw, base])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', top])
  await run('qemu-io', ['-c', 'write -P 7 1M 2M', '-c', 'write -P 9 9M 64k', top])
  await run('qemu-img', ['snapshot', '-c', 'one', top])
  await run('qemu-io', ['-c', 'write -P 8 1M 1M', top])
  const web = await Web.start(t, folder)
  return { web, folder, args: ['--cache-dir', tempFolder(t), '--timeout', '20'] }
}

t.test('a mount shows what qemu-img reads, and goes at once', NEEDS, async t => {
  const { web, folder, args } = await serve(t)
  const address = web.address('top.qcow2')
  const mounted = await mount(t, address, { args })
  t.match(mounted.printed.stdout, /^top\.raw .* read-only\n/)
  for (const [name, source] of [
    ['top.raw', ['top.qcow2']],
    ['top@one.raw', ['-l', 'snapshot.name=one', 'top.qcow2']],
    ['top@base.raw', ['base.qcow2']],
  ] as const) {
    const expected = join(folder, 'expected')
    await run('qemu-img', ['convert', '-O', 'raw', ...source, expected], { cwd: folder })
    t.match(await attemptIn(HERE, 'cmp', [mounted.file(name), expected]), { code: 0 }, name)
  }
  const { remote } = JSON.parse(
    (await attemptIn(HERE, 'cat', [mounted.file('.vimgfs/stats.json')])).stdout,
  )
  t.ok(remote.requests > 0 && remote.failures === 0)
  await web.seen()
  t.match(await vimgfs(HERE, ['umount', mounted.folder]), { code: 0, stderr: '' })
  const again = await mount(t, address, { args, folder: mounted.folder })
  t.match(await attemptIn(HERE, 'cmp', [again.file('top.raw'), join(folder, 'expected')]), {
    code: 1,
  })
  t.equal((await web.seen()).requests, 2, 'one for each file')
  t.match(await vimgfs(HERE, ['umount', again.folder]), { code: 0, stderr: '' })
})

t.test('a server that is silent keeps nobody from unmounting', NEEDS, async t => {
  const { web, args } = await serve(t)
  const mounted = await mount(t, web.address('top.qcow2'), { args: [...args, '--timeout', '600'] })
  await web.set({ always: 'silent' })
  const reading = attemptIn(HERE, 'dd', [
    `if=${mounted.file('top@base.raw')}`,
    'bs=64k',
    'count=1',
    'skip=40',
  ])
  // The reader waits when the server has got its request.
  while ((await web.seen()).requests === 0) await new Promise(setImmediate)
  t.match(await vimgfs(HERE, ['umount', '--lazy', mounted.folder]), { code: 0 })
  process.kill(mounted.pid, 'SIGTERM')
  t.match(await reading, { code: 1, stderr: /Input\/output error/ })
  t.notOk(await isMounted(HERE, mounted.folder))
})

t.test('an object that changes gives I/O errors, and one line in the log', NEEDS, async t => {
  const { web, args } = await serve(t)
  const mounted = await mount(t, web.address('top.qcow2'), { args })
  await web.set({ version: 2 })
  for (const skip of [20, 40, 60]) {
    const words = [`if=${mounted.file('top@base.raw')}`, 'bs=64k', 'count=1', `skip=${skip}`]
    t.match(await attemptIn(HERE, 'dd', words), { code: 1, stderr: /Input\/output error/ })
  }
  t.equal(mounted.log().match(/changed on the server/g)?.length, 1)
})

t.test('commands read images on servers', NEEDS, async t => {
  const { web, folder, args } = await serve(t)
  const address = web.address('top.qcow2')
  const local = join(folder, 'top.qcow2')
  const out = join(folder, 'out.raw')
  t.match(await vimgfs(HERE, ['convert', '-O', 'raw', ...args, address, out]), {
    code: 0,
    stderr: '',
  })
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', out, local])
  t.match(await vimgfs(HERE, ['compare', ...args, address, local]), { code: 0 })
  t.match(await vimgfs(HERE, ['compare', ...args, `${address}@one`, local]), { code: 1 })
  t.match(await vimgfs(HERE, ['check', ...args, address]), { code: 0, stdout: /no errors found/ })
  t.match(await vimgfs(HERE, ['info', '--backing-chain', ...args, address]), {
    code: 0,
    stdout: /base\.qcow2/,
  })
  t.match(await vimgfs(HERE, ['map', ...args, address]), { code: 0, stdout: /base\.qcow2/ })
  t.match(await vimgfs(HERE, ['snapshot', 'list', ...args, address]), { code: 0, stdout: /one/ })
  const [, cache = ''] = args
  const list = await vimgfs(HERE, ['cache', 'list', '--output', 'json', '--cache-dir', cache])
  t.same(
    JSON.parse(list.stdout)
      .map((each: { address: string }) => each.address)
      .sort(),
    [web.address('base.qcow2'), address],
  )
  t.match(await vimgfs(HERE, ['cache', 'clear', '--cache-dir', cache]), {
    code: 0,
    stdout: /freed/,
  })
  t.match(await vimgfs(HERE, ['info', '--offline', ...args, address]), {
    code: 1,
    stderr: /the cache has nothing of it/,
  })
})

t.test('names in images lead nowhere else', NEEDS, async t => {
  const { web, folder, args } = await serve(t)
  const elsewhere = join(folder, 'elsewhere')
  fs.mkdirSync(join(folder, 'in'))
  const rebased = async (name: string, backing: string) => {
    await run('qemu-img', [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-u',
      '-b',
      backing,
      '-F',
      'qcow2',
      join(folder, name),
      '16M',
    ])
    return web.address(name)
  }
  const refused = async (image: string, message: RegExp, more: readonly string[] = []) =>
    t.match(await vimgfs(HERE, ['compare', ...args, ...more, image, image]), {
      code: 2,
      stderr: message,
    })
  fs.copyFileSync(join(folder, 'base.qcow2'), elsewhere)
  await refused(await rebased('a.qcow2', elsewhere), /a path on one machine/)
  await refused(await rebased('b.qcow2', `file:${elsewhere}`), /a path on one machine/)
  await refused(await rebased('d.qcow2', 'nbd:localhost:1'), /a protocol/)
  await refused(
    await rebased('in/c.qcow2', '../base.qcow2'),
    /outside the image's folder; allow it with --allow-path http/,
  )
  const allowed = ['--allow-path', web.address('')]
  const image = web.address('in/c.qcow2')
  t.match(await vimgfs(HERE, ['compare', ...args, ...allowed, image, image]), { code: 0 })
  await rebased('local.qcow2', web.address('base.qcow2'))
  const local = join(folder, 'local.qcow2')
  await refused(local, /is not on this machine; allow it with --allow-path http/)
  t.match(await vimgfs(HERE, ['compare', ...args, ...allowed, local, local]), { code: 0 })
})
