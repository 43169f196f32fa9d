/** V8's code of the bundles makes vimgfs start faster; without it, or with code that is not of this build, it runs as usual. */
import { spawnSync } from 'node:child_process'
import { cpSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { tempFolder } from '../support/run.js'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))

const BUNDLES = ['command', 'mounting', 'reading', 'unmounting', 'worker']

t.test('code that is missing, torn, changed or of another bundle is not run', t => {
  const folder = tempFolder(t)
  for (const name of ['dist', 'package.json']) {
    cpSync(join(ROOT, name), join(folder, name), { recursive: true })
  }
  symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'))
  const file = join(folder, 'dist/command.code')
  const good = readFileSync(file)
  const flipped = (at: number) => {
    const bytes = Buffer.from(good)
    bytes[at]! ^= 0xff
    return bytes
  }
  const files: Record<string, Buffer | undefined> = {
    good,
    empty: Buffer.alloc(0),
    short: good.subarray(0, 1000),
    torn: good.subarray(0, -100),
    junk: Buffer.alloc(5000, 7),
    'of another bundle': readFileSync(join(folder, 'dist/unmounting.code')),
    'changed near its start': flipped(5000),
    'changed near its end': flipped(good.length - 5000),
    missing: undefined,
  }
  for (const [title, bytes] of Object.entries(files)) {
    rmSync(file, { force: true })
    if (bytes) writeFileSync(file, bytes)
    const words = [join(folder, 'dist/cli/main.js'), 'help', 'umount']
    const { status, stdout, stderr } = spawnSync(process.execPath, words, { encoding: 'utf8' })
    t.same({ status, stderr }, { status: 0, stderr: '' }, title)
    t.match(stdout, /^Usage: vimgfs umount/)
  }
  t.end()
})

t.test('this version of Node takes the code', t => {
  const loader = join(ROOT, 'dist/cached-code.cjs')
  const script = `
    const { Script } = require('node:vm')
    require('node:vm').Script = class extends Script {
      constructor(text, options) {
        super(text, options)
        console.log(options.filename.split('/').at(-1), this.cachedDataRejected)
      }
    }
    for (const name of ${JSON.stringify(BUNDLES)}) require(${JSON.stringify(loader)}).loadBundle(name)`
  const { stdout } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' })
  for (const name of BUNDLES) {
    t.match(stdout, `${name}.bundle.cjs false`)
  }
  t.end()
})

t.test('what mounting loads opens no module of Node that few mounts need', t => {
  const script = `
    const opened = () => process.moduleLoadList.filter(name => /^NativeModule (crypto|child_process|readline)$/.test(name))
    const before = opened()
    const { loadBundle } = require(${JSON.stringify(join(ROOT, 'dist/cached-code.cjs'))})
    loadBundle('mounting').loadAll().then(() => console.log(JSON.stringify([before, opened()])))`
  const { stdout } = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' })
  const [before, after] = JSON.parse(stdout)
  t.same(after, before)
  t.end()
})
