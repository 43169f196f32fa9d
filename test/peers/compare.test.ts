/** `vimgfs compare` prints what `qemu-img compare` prints, with its exit codes. */
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run as compare } from '../../src/cli/compare.js'
import { noise } from '../fixtures/model.js'
import { runHere } from '../support/command.js'
import { attempt, needs, run, tempFolder } from '../support/run.js'
import { HERE, vimgfs } from '../support/mount.js'
import { qemuImg, qemuIo } from './qemu.js'

const K = 1024
const M = K * K
const tools = needs('qemu-img', 'qemu-io')

async function agrees(t: Test, cwd: string, args: readonly string[], code: number): Promise<void> {
  for (const words of [
    args,
    [...args.slice(0, -2), args.at(-1) as string, args.at(-2) as string],
  ]) {
    const theirs = await attempt('qemu-img', ['compare', ...words], { cwd })
    const ours = await runHere(compare, words, cwd)
    const title = words.join(' ')
    t.equal(ours.code, theirs.code, `${title}: ${ours.stderr}`)
    t.equal(ours.code, code, `${title} is ${code}`)
    t.equal(ours.stdout, theirs.stdout, title)
  }
}

/** A disk in many kinds of images. */
async function copies(cwd: string, content: Buffer): Promise<string[]> {
  writeFileSync(join(cwd, 'raw'), content)
  const kinds = {
    sparse: ['raw'],
    qcow2: ['qcow2'],
    small: ['qcow2', '-o', 'cluster_size=512'],
    packed: ['qcow2', '-c'],
    full: ['qcow2', '-S', '0'],
    vmdk: ['vmdk'],
    stream: ['vmdk', '-o', 'subformat=streamOptimized'],
    qcow: ['qcow'],
  }
  for (const [name, [format, ...options]] of Object.entries(kinds)) {
    const all = ['convert', '-f', 'raw', '-O', format as string, ...options, 'raw', name]
    await run('qemu-img', all, { cwd })
  }
  return ['raw', ...Object.keys(kinds)]
}

t.test('equal disks of all kinds, and one changed byte', tools, async t => {
  const cwd = tempFolder(t)
  const content = Buffer.concat([noise(200 * K, 1), Buffer.alloc(M), noise(70 * K + 512, 2)])
  const names = await copies(cwd, content)
  const places = [0, 511, 70_001, 300_000, content.length - 1]
  for (const at of places) {
    const changed = Buffer.from(content)
    changed.writeUInt8(changed.readUInt8(at) ^ 1, at)
    writeFileSync(join(cwd, `changed${at}`), changed)
  }
  for (const [i, name] of names.entries()) {
    const other = names[(i + 1) % names.length] as string
    await agrees(t, cwd, [name, other], 0)
    await agrees(t, cwd, ['-q', name, `changed${places[i % places.length]}`], 1)
    await agrees(t, cwd, [name, `changed${places[(i + 1) % places.length]}`], 1)
  }
  await agrees(t, cwd, ['-f', 'raw', '-F', 'raw', 'raw', 'sparse'], 0)
})

t.test('disks of different sizes', tools, async t => {
  const cwd = tempFolder(t)
  const content = noise(100 * K, 1)
  writeFileSync(join(cwd, 'a'), content)
  writeFileSync(join(cwd, 'zeros'), content)
  truncateSync(join(cwd, 'zeros'), 300 * K)
  writeFileSync(join(cwd, 'more'), Buffer.concat([content, Buffer.alloc(5_000), noise(1_000, 1)]))
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', join(cwd, 'zeros'), join(cwd, 'qcow2'))
  await agrees(t, cwd, ['a', 'zeros'], 0)
  await agrees(t, cwd, ['a', 'qcow2'], 0)
  await agrees(t, cwd, ['-s', 'a', 'zeros'], 1)
  await agrees(t, cwd, ['a', 'more'], 1)
  await agrees(t, cwd, ['zeros', 'more'], 1)
  for (const bytes of [1, 700, 1_023]) {
    writeFileSync(join(cwd, 'odd'), Buffer.concat([content, Buffer.alloc(bytes)]))
    await agrees(t, cwd, ['a', 'odd'], 0)
  }
})

t.test('strict', tools, async t => {
  const cwd = tempFolder(t)
  const [a, b] = [join(cwd, 'a'), join(cwd, 'b')]
  for (const image of [a, b]) {
    await qemuImg('create', '-q', '-f', 'qcow2', image, '1M')
    await qemuIo(image, ['write -P 1 0 64k', 'write -P 2 256k 64k'])
  }
  await agrees(t, cwd, ['-s', 'a', 'b'], 0)
  await qemuIo(b, ['write -z 512k 64k'])
  // QEMU gives an earlier place: where one disk has nothing any more, and the other one has.
  t.match(await runHere(compare, ['-s', 'a', 'b'], cwd), {
    code: 1,
    stdout: `Strict mode: Offset ${512 * K} block status mismatch!\n`,
  })
  await agrees(t, cwd, ['a', 'b'], 0)
  await qemuIo(b, ['write -P 9 300k 1k'])
  t.match(await runHere(compare, ['-s', 'a', 'b'], cwd), {
    stdout: `Content mismatch at offset ${300 * K}!\n`,
  })
  await agrees(t, cwd, ['a', 'b'], 1)
})

t.test('over backing files', tools, async t => {
  const cwd = tempFolder(t)
  writeFileSync(join(cwd, 'base'), noise(500 * K, 1))
  for (const name of ['a', 'b']) {
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'raw', name, '1M'], {
      cwd,
    })
  }
  await agrees(t, cwd, ['a', 'b'], 0)
  await agrees(t, cwd, ['a', 'base'], 0)
  await qemuIo(join(cwd, 'b'), ['write -z 100k 4k'])
  await agrees(t, cwd, ['a', 'b'], 1)
})

t.test('snapshots', tools, async t => {
  const cwd = tempFolder(t)
  const image = join(cwd, 'disk.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', image, '1M')
  await qemuIo(image, ['write -P 1 0 200k'])
  await qemuImg('snapshot', '-c', 'one', image)
  await qemuIo(image, ['write -P 2 100k 512'])
  const here = (...args: string[]) => runHere(compare, args, cwd)
  t.match(await here('disk.qcow2@one', 'disk.qcow2'), {
    code: 1,
    stdout: `Content mismatch at offset ${100 * K}!\n`,
  })
  t.match(await here('disk.qcow2@one', 'disk.qcow2@one'), { code: 0 })
  const theirs = join(cwd, 'one.raw')
  await qemuImg('convert', '-l', 'one', '-O', 'raw', image, theirs)
  t.match(await here('disk.qcow2@one', 'one.raw'), { code: 0, stdout: 'Images are identical.\n' })
  t.match(await here('disk.qcow2@two', 'one.raw'), { code: 2, stderr: /no snapshot "two"/ })
})

t.test('what cannot be opened or read', tools, async t => {
  const cwd = tempFolder(t)
  const image = join(cwd, 'disk.qcow2')
  writeFileSync(join(cwd, 'raw'), noise(M, 1))
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', join(cwd, 'raw'), image)
  const here = (...args: string[]) => runHere(compare, args, cwd)
  t.match(await here('none', 'raw'), { code: 2, stderr: /no such file/ })
  t.match(await here('raw'), { code: 2 })
  t.match(await here('-f', 'what', 'raw', 'raw'), { code: 2 })
  await agrees(t, cwd, ['none', 'raw'], 2)
  const whole = readFileSync(image)
  writeFileSync(image, whole.subarray(0, 64 * K * Math.floor(whole.length / (64 * K) - 2)))
  t.match(await here('disk.qcow2', 'raw'), { code: 4, stderr: /disk\.qcow2: it cannot be read at/ })
  t.match(await here('raw', 'disk.qcow2'), { code: 4, stderr: /disk\.qcow2: it cannot be read at/ })
  const lost = Buffer.from(whole)
  const l1At = Number(whole.readBigUInt64BE(40))
  lost.writeBigUInt64BE((1n << 63n) | 0x123400n, l1At)
  writeFileSync(image, lost)
  t.match(await here('disk.qcow2', 'raw'), { code: 3, stderr: /L1 entry 0/ })
})

t.test('several threads', tools, async t => {
  const cwd = tempFolder(t)
  const [a, b] = [join(cwd, 'a'), join(cwd, 'b')]
  // Compressed data are work enough for threads.
  writeFileSync(join(cwd, 'raw'), Buffer.alloc(200 * M, 'text'))
  await qemuImg('convert', '-f', 'raw', '-c', '-O', 'qcow2', join(cwd, 'raw'), a)
  copyFileSync(a, b)
  const found = await vimgfs(HERE, ['compare', a, b])
  t.strictSame(found, { code: 0, stdout: 'Images are identical.\n', stderr: '' })
  await qemuIo(b, [`write -P 1 ${190 * M} 1`, `write -P 1 ${180 * M + 700} 1`])
  t.strictSame(await vimgfs(HERE, ['compare', a, b]), {
    code: 1,
    stdout: `Content mismatch at offset ${180 * M + 512}!\n`,
    stderr: '',
  })
})
