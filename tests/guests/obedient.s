# A boot sector that says "up", answers every byte that its first serial port hears with the one before
# (the first with a dot), and switches the machine off when its power button is pressed.
.set COM1, 0x3f8
.set ACPI, 0x600                # where SeaBIOS maps q35's power management
.code16
start:
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    $(ACPI + 2), %dx    # PM1_EN
    movw    $0x100, %ax         # PWRBTN_EN
    outw    %ax, %dx
    movw    $(0x7c00 + text), %si
    movw    $COM1, %dx
1:  lodsb
    outb    %al, %dx
    cmpb    $10, %al
    jne     1b
    movb    $'.', %bl
    sti
2:  hlt                         # the timer wakes it
    movw    $(COM1 + 5), %dx
    inb     %dx, %al
    testb   $1, %al
    jz      3f
    movw    $COM1, %dx
    inb     %dx, %al
    xchgb   %al, %bl
    outb    %al, %dx
3:  movw    $ACPI, %dx          # PM1_STS
    inw     %dx, %ax
    testb   $1, %ah             # PWRBTN_STS
    jz      2b
    movw    $(ACPI + 4), %dx    # PM1_CNT
    movw    $0x2000, %ax        # S5
    outw    %ax, %dx
    jmp     2b
text:
    .ascii  "up\n"
    .org    510
    .word   0xaa55
